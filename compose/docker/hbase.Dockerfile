# HBase (master, region server, ZooKeeper, Thrift) and Omid's TSO from the jars on Maven Central.
FROM maven:3.9.9-eclipse-temurin-17 AS jars
COPY hbase.pom.xml /pom.xml
RUN mvn -B -q -f /pom.xml org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy-dependencies \
  -DincludeScope=runtime -DoutputDirectory=/lib-hbase

FROM eclipse-temurin:17.0.15_6-jre-jammy
COPY --from=jars /lib-hbase /opt/hbase/lib
COPY hbase-site.xml log4j2.properties omid-server-configuration.yml /opt/hbase/conf/
COPY --chmod=0755 run listens run-omid /opt/hbase/
RUN useradd --system hbase && mkdir /data && chown hbase /data
USER hbase
VOLUME /data
ENTRYPOINT ["/opt/hbase/run"]
