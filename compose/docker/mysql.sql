-- Runs once, as root, when the container's data directory is new.
CREATE DATABASE IF NOT EXISTS ads CHARACTER SET utf8mb4 COLLATE utf8mb4_unicode_ci;
CREATE USER IF NOT EXISTS 'adsindex'@'%' IDENTIFIED BY 'adsindex';
GRANT SELECT, RELOAD, SHOW DATABASES, REPLICATION SLAVE, REPLICATION CLIENT ON *.* TO 'adsindex'@'%';
GRANT ALL PRIVILEGES ON ads.* TO 'adsindex'@'%';
GRANT ALL PRIVILEGES ON `ads\_%`.* TO 'adsindex'@'%';
