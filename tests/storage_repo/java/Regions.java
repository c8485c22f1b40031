import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.io.PrintStream;
import java.nio.charset.StandardCharsets;
import java.util.HexFormat;
import org.apache.hadoop.hbase.HBaseConfiguration;
import org.apache.hadoop.hbase.ServerName;
import org.apache.hadoop.hbase.TableName;
import org.apache.hadoop.hbase.client.Admin;
import org.apache.hadoop.hbase.client.Connection;
import org.apache.hadoop.hbase.client.ConnectionFactory;
import org.apache.hadoop.hbase.client.RegionInfo;
import org.apache.hadoop.hbase.client.RegionLocator;
import org.apache.hadoop.hbase.util.Bytes;

/**
 * HBase's administration, driven by lines: a command and its arguments, separated by spaces; keys in hexadecimal, "-"
 * for none. The answer is one line: "ok" and values, or "error" and a text. Every command but
 * compact has been done when answered.
 */
public final class Regions {
    private static byte[] bytes(String word) {
        return word.equals("-") ? new byte[0] : HexFormat.of().parseHex(word);
    }

    private static String hex(byte[] bytes) {
        return bytes.length == 0 ? "-" : HexFormat.of().formatHex(bytes);
    }

    private static String run(Connection connection, Admin admin, String[] words) throws Exception {
        StringBuilder answer = new StringBuilder("ok");
        switch (words[0]) {
            case "servers":
                for (ServerName server : admin.getRegionServers()) {
                    answer.append(' ').append(server);
                }
                break;
            case "regions": // of a table: encoded name, first key, server
                try (RegionLocator locator = connection.getRegionLocator(TableName.valueOf(words[1]))) {
                    locator.clearRegionLocationCache();
                    locator.getAllRegionLocations().forEach(location -> {
                        RegionInfo region = location.getRegion();
                        answer.append(' ').append(region.getEncodedName()).append(' ').append(hex(region.getStartKey()));
                        answer.append(' ').append(location.getServerName());
                    });
                }
                break;
            case "move": // a region to a server
                admin.move(Bytes.toBytes(words[1]), ServerName.valueOf(words[2]));
                break;
            case "split": // a region at a key
                admin.splitRegionAsync(Bytes.toBytes(words[1]), bytes(words[2])).get();
                break;
            case "roll": // the write-ahead log of a server
                admin.rollWALWriter(ServerName.valueOf(words[1]));
                break;
            case "compact": // a table, thoroughly; it goes on after the answer
                admin.flush(TableName.valueOf(words[1]));
                admin.majorCompact(TableName.valueOf(words[1]));
                break;
            case "procedures": // all that the master knows, as JSON
                answer.append(' ').append(hex(admin.getProcedures().getBytes(StandardCharsets.UTF_8)));
                break;
            default:
                throw new IllegalArgumentException("no command " + words[0]);
        }
        return answer.toString();
    }

    public static void main(String[] arguments) throws Exception {
        PrintStream out = System.out;
        System.setOut(System.err);
        try (Connection connection = ConnectionFactory.createConnection(HBaseConfiguration.create());
                Admin admin = connection.getAdmin()) {
            out.println("ready");
            out.flush();
            BufferedReader in = new BufferedReader(new InputStreamReader(System.in, StandardCharsets.UTF_8));
            for (String line = in.readLine(); line != null; line = in.readLine()) {
                String answer;
                try {
                    answer = run(connection, admin, line.split(" "));
                } catch (Exception error) {
                    answer = "error " + String.valueOf(error).replace('\n', ' ');
                }
                out.println(answer);
                out.flush();
            }
        }
    }
}
