package adsindex.bench;

import io.debezium.engine.ChangeEvent;
import io.debezium.engine.DebeziumEngine;
import io.debezium.engine.format.Json;
import java.io.BufferedReader;
import java.io.IOException;
import java.io.InputStreamReader;
import java.io.OutputStream;
import java.io.PrintStream;
import java.lang.management.ManagementFactory;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.List;
import java.util.Properties;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;

/**
 * Tails a binlog with Debezium's embedded engine and writes every change's JSON envelope to a sink.
 *
 * <p>Arguments: properties file, sink (a file; /dev/null throws away). A line with a number N on standard input asks to
 * be told when N more row changes (c, u, d) have gone to the sink; the answer is one line of JSON on standard output.
 * The end of standard input ends the engine.
 */
public final class Tail {
    private final OutputStream sink;
    private final PrintStream answers;
    private long rows;
    private long bytes;
    private long wanted = Long.MAX_VALUE;

    private Tail(OutputStream sink, PrintStream answers) {
        this.sink = sink;
        this.answers = answers;
    }

    public static void main(String[] arguments) throws Exception {
        // Libraries may print; the protocol keeps standard output to itself.
        PrintStream answers = System.out;
        System.setOut(System.err);
        Properties properties = new Properties();
        try (var reader = Files.newBufferedReader(Path.of(arguments[0]))) {
            properties.load(reader);
        }
        try (OutputStream sink = Files.newOutputStream(Path.of(arguments[1]))) {
            new Tail(sink, answers).run(properties);
        }
    }

    private void run(Properties properties) throws Exception {
        try (DebeziumEngine<ChangeEvent<String, String>> engine =
                DebeziumEngine.create(Json.class)
                        .using(properties)
                        .notifying(this::take)
                        .using((success, message, error) -> {
                            if (!success) {
                                System.err.println("engine failed: " + message);
                                if (error != null) {
                                    error.printStackTrace();
                                }
                                System.exit(3);
                            }
                        })
                        .build()) {
            ExecutorService executor = Executors.newSingleThreadExecutor();
            executor.execute(engine);
            BufferedReader requests = new BufferedReader(new InputStreamReader(System.in, StandardCharsets.UTF_8));
            for (String line = requests.readLine(); line != null; line = requests.readLine()) {
                expect(Long.parseLong(line.trim()));
            }
            executor.shutdown();
        }
    }

    private synchronized void expect(long more) {
        wanted = more;
        answerIfDone();
    }

    private synchronized void take(
            List<ChangeEvent<String, String>> batch, DebeziumEngine.RecordCommitter<ChangeEvent<String, String>> committer)
            throws InterruptedException {
        try {
            for (ChangeEvent<String, String> event : batch) {
                // A tombstone follows a delete; schema changes and heartbeats have topics without a table.
                if (event.value() != null && event.value().contains("\"op\":\"")) {
                    byte[] envelope = event.value().getBytes(StandardCharsets.UTF_8);
                    sink.write(envelope);
                    rows++;
                    bytes += envelope.length;
                }
                committer.markProcessed(event);
            }
            sink.flush();
        } catch (IOException error) {
            throw new IllegalStateException("the sink cannot be written", error);
        }
        committer.markBatchFinished();
        answerIfDone();
    }

    private void answerIfDone() {
        if (rows >= wanted) {
            var machine = (com.sun.management.OperatingSystemMXBean) ManagementFactory.getOperatingSystemMXBean();
            answers.printf(
                    "{\"rows\": %d, \"bytes\": %d, \"cpu_ns\": %d}%n", rows, bytes, machine.getProcessCpuTime());
            answers.flush();
            rows = 0;
            bytes = 0;
            wanted = Long.MAX_VALUE;
        }
    }
}
