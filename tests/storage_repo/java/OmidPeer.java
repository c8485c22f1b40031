import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.io.PrintStream;
import java.lang.reflect.Field;
import java.nio.charset.StandardCharsets;
import java.util.HashMap;
import java.util.HexFormat;
import java.util.List;
import java.util.Map;
import org.apache.hadoop.hbase.Cell;
import org.apache.hadoop.hbase.CellUtil;
import org.apache.hadoop.hbase.client.Connection;
import org.apache.hadoop.hbase.client.ConnectionFactory;
import org.apache.hadoop.hbase.client.Delete;
import org.apache.hadoop.hbase.client.Get;
import org.apache.hadoop.hbase.client.Put;
import org.apache.hadoop.hbase.client.Result;
import org.apache.hadoop.hbase.client.ResultScanner;
import org.apache.hadoop.hbase.client.Scan;
import org.apache.omid.committable.hbase.HBaseCommitTable;
import org.apache.omid.committable.hbase.HBaseCommitTableConfig;
import org.apache.omid.transaction.AbstractTransaction;
import org.apache.omid.transaction.HBaseOmidClientConfiguration;
import org.apache.omid.transaction.HBaseSyncPostCommitter;
import org.apache.omid.transaction.HBaseTransactionManager;
import org.apache.omid.transaction.PostCommitActions;
import org.apache.omid.transaction.RollbackException;
import org.apache.omid.transaction.TTable;
import org.apache.omid.transaction.Transaction;
import org.apache.omid.transaction.TransactionManager;
import org.apache.omid.tso.client.CellId;
import org.apache.omid.tso.client.OmidClientConfiguration.ConnType;
import org.apache.omid.tso.client.OmidClientConfiguration.ConflictDetectionLevel;
import org.apache.phoenix.thirdparty.com.google.common.base.Optional;
import org.apache.phoenix.thirdparty.com.google.common.util.concurrent.Futures;
import org.apache.phoenix.thirdparty.com.google.common.util.concurrent.ListenableFuture;

/**
 * Apache Omid's own client, driven by lines: a command and its arguments, separated by spaces; bytes in hexadecimal,
 * "-" for none. The answer is one line: "ok" and values, "aborted", or "error" and a text.
 *
 * Arguments of the program: ha ZOOKEEPER | direct HOST:PORT, and cell | row (the level of conflicts).
 */
public final class OmidPeer {
    private enum Stop { NEVER, SHADOW_CELLS, REMOVAL }

    private final Map<String, Transaction> open = new HashMap<>();
    private final Map<String, TTable> tables = new HashMap<>();
    private final Connection connection;
    private final HBaseTransactionManager manager;
    private volatile Stop stop = Stop.NEVER;

    private OmidPeer(String how, String where, String level) throws Exception {
        HBaseOmidClientConfiguration configuration = new HBaseOmidClientConfiguration();
        configuration.setConnectionType(how.equals("ha") ? ConnType.HA : ConnType.DIRECT);
        configuration.setConnectionString(where);
        configuration.setConflictAnalysisLevel(
            level.equals("row") ? ConflictDetectionLevel.ROW : ConflictDetectionLevel.CELL);
        configuration.setReconnectionDelayInSecs(1); // 10 would make tests of fail-over slow
        connection = ConnectionFactory.createConnection(configuration.getHBaseConfiguration());
        // What happens after the commit is decided here, so that a test can have the client "die" in between.
        HBaseTransactionManager.Builder builder = HBaseTransactionManager.builder(configuration);
        PostCommitActions real = new HBaseSyncPostCommitter(
            configuration.getMetrics(), new HBaseCommitTable(connection, new HBaseCommitTableConfig()).getClient(), connection);
        Field ours = HBaseTransactionManager.Builder.class.getDeclaredField("postCommitter");
        ours.setAccessible(true);
        ours.set(builder, Optional.of(new Stoppable(real)));
        manager = builder.build();
    }

    /** Does what follows a commit up to where it is to stop, as if the client had died there. */
    private final class Stoppable implements PostCommitActions {
        private final PostCommitActions real;

        Stoppable(PostCommitActions real) {
            this.real = real;
        }

        @Override
        public ListenableFuture<Void> updateShadowCells(AbstractTransaction<? extends CellId> transaction) {
            return stop == Stop.SHADOW_CELLS ? Futures.immediateFuture(null) : real.updateShadowCells(transaction);
        }

        @Override
        public ListenableFuture<Void> removeCommitTableEntry(AbstractTransaction<? extends CellId> transaction) {
            return stop == Stop.NEVER ? real.removeCommitTableEntry(transaction) : Futures.immediateFuture(null);
        }
    }

    private static byte[] bytes(String word) {
        return word.equals("-") ? new byte[0] : HexFormat.of().parseHex(word);
    }

    private static String hex(byte[] bytes) {
        return bytes.length == 0 ? "-" : HexFormat.of().formatHex(bytes);
    }

    private TTable table(String name) throws Exception {
        TTable table = tables.get(name);
        if (table == null) {
            table = new TTable(connection, bytes(name));
            tables.put(name, table);
        }
        return table;
    }

    private Transaction transaction(String name) {
        Transaction transaction = open.get(name);
        if (transaction == null) {
            throw new IllegalArgumentException("no transaction " + name);
        }
        return transaction;
    }

    private static String cells(Result result) {
        StringBuilder text = new StringBuilder();
        for (Cell cell : result.listCells() == null ? List.<Cell>of() : result.listCells()) {
            text.append(' ').append(hex(CellUtil.cloneRow(cell))).append(' ').append(hex(CellUtil.cloneFamily(cell)));
            text.append(' ').append(hex(CellUtil.cloneQualifier(cell))).append(' ');
            text.append(hex(CellUtil.cloneValue(cell)));
        }
        return text.toString();
    }

    private String commit(String name) throws Exception {
        Transaction transaction = transaction(name);
        open.remove(name);
        try {
            manager.commit(transaction);
        } catch (RollbackException conflict) {
            return "aborted";
        }
        return "ok " + ((AbstractTransaction<?>) transaction).getCommitTimestamp();
    }

    /** Act on one line. */
    private String answer(String[] word) throws Exception {
        switch (word[0]) {
            case "begin": { // NAME -> start timestamp, epoch
                Transaction transaction = manager.begin();
                open.put(word[1], transaction);
                return "ok " + transaction.getTransactionId() + " " + transaction.getEpoch();
            }
            case "put": // NAME TABLE ROW FAMILY QUALIFIER VALUE
                table(word[2]).put(
                    transaction(word[1]), new Put(bytes(word[3])).addColumn(bytes(word[4]), bytes(word[5]), bytes(word[6])));
                return "ok";
            case "delete": { // NAME TABLE ROW [FAMILY [QUALIFIER]]
                Delete delete = new Delete(bytes(word[3]));
                if (word.length == 5) {
                    delete.addFamily(bytes(word[4]));
                } else if (word.length == 6) {
                    delete.addColumn(bytes(word[4]), bytes(word[5]));
                }
                table(word[2]).delete(transaction(word[1]), delete);
                return "ok";
            }
            case "get": { // NAME TABLE ROW [FAMILY QUALIFIER]... -> ROW FAMILY QUALIFIER VALUE...
                Get get = new Get(bytes(word[3]));
                for (int at = 4; at < word.length; at += 2) {
                    get.addColumn(bytes(word[at]), bytes(word[at + 1]));
                }
                return "ok" + cells(table(word[2]).get(transaction(word[1]), get));
            }
            case "scan": { // NAME TABLE FROM TO -> as get
                Scan scan = new Scan().withStartRow(bytes(word[3])).withStopRow(bytes(word[4]));
                StringBuilder text = new StringBuilder("ok");
                try (ResultScanner scanner = table(word[2]).getScanner(transaction(word[1]), scan)) {
                    for (Result result = scanner.next(); result != null; result = scanner.next()) {
                        text.append(cells(result));
                    }
                }
                return text.toString();
            }
            case "commit": // NAME [shadow-cells | removal: die before that] -> commit timestamp
                stop = word.length < 3 ? Stop.NEVER : word[2].equals("removal") ? Stop.REMOVAL : Stop.SHADOW_CELLS;
                try {
                    return commit(word[1]);
                } finally {
                    stop = Stop.NEVER;
                }
            case "rollback": // NAME
                manager.rollback(transaction(word[1]));
                open.remove(word[1]);
                return "ok";
            case "abandon": // NAME: as if the client had died before the commit
                transaction(word[1]);
                open.remove(word[1]);
                return "ok";
            case "fence": // TABLE -> timestamp
                return "ok " + ((TransactionManager) manager).fence(bytes(word[1])).getTransactionId();
            default:
                throw new IllegalArgumentException("no command " + word[0]);
        }
    }

    public static void main(String[] arguments) throws Exception {
        PrintStream out = new PrintStream(System.out, true, StandardCharsets.UTF_8);
        System.setOut(System.err); // logging of libraries must not come between answers
        OmidPeer peer = new OmidPeer(arguments[0], arguments[1], arguments[2]);
        out.println("ready");
        BufferedReader lines = new BufferedReader(new InputStreamReader(System.in, StandardCharsets.UTF_8));
        for (String line = lines.readLine(); line != null; line = lines.readLine()) {
            try {
                out.println(peer.answer(line.split(" ")));
            } catch (Exception error) {
                out.println("error " + String.valueOf(error).replaceAll("\\s+", " "));
            }
        }
        Runtime.getRuntime().halt(0); // nothing to save; closing takes seconds
    }
}
