-- A million rows: inserted, indexed, grouped, joined, deleted, checked; then an error.
.mode list
CREATE TABLE t(id INTEGER PRIMARY KEY, a INTEGER, b TEXT);
WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i<1000000)
INSERT INTO t SELECT i, (i*7919)%100003, 'row '||(i%1000) FROM n;
SELECT count(*), sum(a), max(b) FROM t;
CREATE INDEX by_a ON t(a);
SELECT a, count(*) FROM t WHERE a BETWEEN 100 AND 105 GROUP BY a;
SELECT b, count(*), avg(a) FROM t GROUP BY b ORDER BY 3 DESC LIMIT 5;
DELETE FROM t WHERE id % 3 = 0;
UPDATE t SET a = a + 1 WHERE id < 1000;
SELECT count(*), sum(a) FROM t;
SELECT x.id, y.id FROM t x JOIN t y ON x.a = y.a AND x.id < y.id WHERE x.id < 50 ORDER BY 1, 2 LIMIT 10;
PRAGMA integrity_check;
SELECT * FROM missing;
