import org.apache.hadoop.hbase.HBaseConfiguration;
import org.apache.hadoop.hbase.TableName;
import org.apache.hadoop.hbase.client.Admin;
import org.apache.hadoop.hbase.client.Connection;
import org.apache.hadoop.hbase.client.ConnectionFactory;

/** Has tables flushed and asks for their major compaction, which then runs by itself. Arguments: tables. */
public class Compact {
    public static void main(String[] tables) throws Exception {
        try (Connection connection = ConnectionFactory.createConnection(HBaseConfiguration.create());
                Admin admin = connection.getAdmin()) {
            for (String table : tables) {
                admin.flush(TableName.valueOf(table));
                admin.majorCompact(TableName.valueOf(table));
            }
        }
    }
}
