import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.io.PrintStream;
import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.Random;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.Future;
import org.apache.hadoop.hbase.client.Connection;
import org.apache.hadoop.hbase.client.ConnectionFactory;
import org.apache.hadoop.hbase.client.Get;
import org.apache.hadoop.hbase.client.Put;
import org.apache.hadoop.hbase.client.Result;
import org.apache.hadoop.hbase.util.Bytes;
import org.apache.omid.committable.CommitTable;
import org.apache.omid.transaction.AbstractTransaction;
import org.apache.omid.transaction.AbstractTransactionManager;
import org.apache.omid.transaction.HBaseOmidClientConfiguration;
import org.apache.omid.transaction.HBaseTransactionManager;
import org.apache.omid.transaction.TTable;
import org.apache.omid.transaction.Transaction;
import org.apache.omid.transaction.TransactionManager;
import org.apache.omid.tso.client.OmidClientConfiguration.ConnType;
import org.apache.omid.tso.client.OmidClientConfiguration.PostCommitMode;

/**
 * Apache Omid's own client doing transactions as fast as it can.
 *
 * Arguments: ZOOKEEPER TABLE ROWS ROWS_EACH VALUE_BYTES COLUMN... A line "update|write|read sync|async THREADS COUNT"
 * is answered by "ok SECONDS" and the microseconds that each transaction took. Every thread has rows of its own.
 */
public final class OmidBench {
    private static final byte[] FAMILY = {(byte) 'f'}; // no HBase class may be loaded before main: it would log to the output

    private final Connection connection;
    private final TransactionManager sync;
    private final TransactionManager async;
    private final byte[] table;
    private final int rows;
    private final int rowsEach;
    private final int valueBytes;
    private final List<byte[]> columns = new ArrayList<>();

    private OmidBench(String[] arguments) throws Exception {
        HBaseOmidClientConfiguration configuration = configuration(arguments[0], PostCommitMode.SYNC);
        connection = ConnectionFactory.createConnection(configuration.getHBaseConfiguration());
        sync = HBaseTransactionManager.newInstance(configuration);
        async = HBaseTransactionManager.newInstance(configuration(arguments[0], PostCommitMode.ASYNC));
        table = Bytes.toBytes(arguments[1]);
        rows = Integer.parseInt(arguments[2]);
        rowsEach = Integer.parseInt(arguments[3]);
        valueBytes = Integer.parseInt(arguments[4]);
        for (String column : Arrays.asList(arguments).subList(5, arguments.length)) {
            columns.add(Bytes.toBytes(column));
        }
    }

    private static HBaseOmidClientConfiguration configuration(String zooKeeper, PostCommitMode mode) {
        HBaseOmidClientConfiguration configuration = new HBaseOmidClientConfiguration();
        configuration.setConnectionType(ConnType.HA);
        configuration.setConnectionString(zooKeeper);
        configuration.setPostCommitMode(mode);
        return configuration;
    }

    /** One transaction; returns a number that depends on what was read, so that nothing is optimized away. */
    private long transact(String kind, TransactionManager manager, TTable on, List<byte[]> keys, Random chance)
            throws Exception {
        Transaction transaction = manager.begin();
        long seen = 0;
        if (!kind.equals("write")) {
            List<Get> gets = new ArrayList<>();
            for (byte[] key : keys) {
                Get get = new Get(key);
                for (byte[] column : columns) {
                    get.addColumn(FAMILY, column);
                }
                gets.add(get);
            }
            for (Result result : on.get(transaction, gets)) {
                for (byte[] column : columns) {
                    byte[] value = result.getValue(FAMILY, column);
                    if (value == null || value.length != valueBytes) {
                        throw new IllegalStateException("a value is missing");
                    }
                    seen += value[0];
                }
            }
        }
        if (!kind.equals("read")) {
            List<Put> puts = new ArrayList<>();
            for (byte[] key : keys) {
                Put put = new Put(key);
                for (byte[] column : columns) {
                    byte[] value = new byte[valueBytes];
                    chance.nextBytes(value);
                    put.addColumn(FAMILY, column, value);
                }
                puts.add(put);
            }
            on.put(transaction, puts);
        }
        manager.commit(transaction);
        return seen;
    }

    private long[] work(String kind, TransactionManager manager, int thread, int threads, int count) throws Exception {
        long[] micros = new long[count];
        Random chance = new Random(thread);
        long seen = 0;
        try (TTable on = new TTable(connection, table)) {
            for (int at = 0; at < count; at++) {
                List<byte[]> keys = new ArrayList<>();
                for (int row : chance.ints(0, rows / threads).distinct().limit(rowsEach).toArray()) {
                    keys.add(Bytes.toBytes(String.format("row%07d", row * threads + thread)));
                }
                long started = System.nanoTime();
                seen += transact(kind, manager, on, keys, chance);
                micros[at] = (System.nanoTime() - started) / 1000;
            }
        }
        System.err.println(seen);
        return micros;
    }

    /** Wait until what commits have left for later is done: one thread does it, in their order. */
    private void settle() throws Exception {
        try (TTable on = new TTable(connection, table)) {
            Transaction last = async.begin();
            on.put(last, new Put(Bytes.toBytes("settled")).addColumn(FAMILY, columns.get(0), new byte[valueBytes]));
            async.commit(last);
            CommitTable.Client commits = ((AbstractTransactionManager) async).getCommitTableClient();
            while (commits.getCommitTimestamp(((AbstractTransaction<?>) last).getStartTimestamp()).get().isPresent()) {
                Thread.sleep(5);
            }
        }
    }

    private String run(String kind, String mode, int threads, int count) throws Exception {
        ExecutorService pool = Executors.newFixedThreadPool(threads);
        try {
            List<Future<long[]>> running = new ArrayList<>();
            long started = System.nanoTime();
            for (int at = 0; at < threads; at++) {
                int thread = at;
                TransactionManager manager = mode.equals("async") ? async : sync;
                running.add(pool.submit(() -> work(kind, manager, thread, threads, count / threads)));
            }
            StringBuilder text = new StringBuilder();
            for (Future<long[]> future : running) {
                for (long micros : future.get()) {
                    text.append(' ').append(micros);
                }
            }
            double seconds = (System.nanoTime() - started) / 1e9;
            if (mode.equals("async") && !kind.equals("read")) {
                settle();
            }
            return "ok " + seconds + text;
        } finally {
            pool.shutdown();
        }
    }

    public static void main(String[] arguments) throws Exception {
        PrintStream out = new PrintStream(System.out, true, StandardCharsets.UTF_8);
        System.setOut(System.err); // logging of libraries must not come between answers
        OmidBench bench = new OmidBench(arguments);
        out.println("ready");
        BufferedReader lines = new BufferedReader(new InputStreamReader(System.in, StandardCharsets.UTF_8));
        for (String line = lines.readLine(); line != null; line = lines.readLine()) {
            String[] word = line.split(" ");
            try {
                out.println(bench.run(word[0], word[1], Integer.parseInt(word[2]), Integer.parseInt(word[3])));
            } catch (Exception error) {
                out.println("error " + String.valueOf(error).replaceAll("\\s+", " "));
            }
        }
        Runtime.getRuntime().halt(0); // nothing to save; closing takes seconds
    }
}
