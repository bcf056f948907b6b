//! What the real programs are given to do: some tenths of a second each, and many allocations of the
//! kinds that such programs make.

use std::fmt::Write as _;

use crate::measure::Numbers;

/// Tables and strings that come and go.
pub const LUA: &str = r#"
local live, seed = {}, 42
local function below(n) seed = (seed * 1103515245 + 12345) % 2147483648; return seed % n end
for i = 1, 110000 do
  local k = below(60000)
  if live[k] and below(3) == 0 then live[k] = nil
  else
    local t = { name = "node" .. i, value = i, tag = string.rep("x", below(60)) }
    for j = 1, below(6) do t[j] = { j, i + j } end
    live[k] = t
  end
end
local sum = 0
for _, t in pairs(live) do sum = sum + #t.name + #t end
print(sum)
"#;

/// Objects, dictionaries, JSON there and back, words counted.
pub const PYTHON: &str = r#"
import json, re
class Node:
    def __init__(self, n): self.n, self.kids, self.text = n, [], "node %d" % n
def tree(depth, n):
    node = Node(n)
    if depth: node.kids = [tree(depth - 1, n * 3 + i) for i in range(3)]
    return node
def walk(node): return len(node.text) + sum(walk(kid) for kid in node.kids)
total = walk(tree(9, 1))
table = {"k%d" % i: [i, str(i) * (i % 7), {"a": i}] for i in range(20000)}
text = json.dumps(table)
back = json.loads(text)
count = {}
for word in re.findall(r"\w+", text): count[word] = count.get(word, 0) + 1
print(total, len(back), len(count))
"#;

/// A table in memory: filled, indexed, grouped, joined, changed.
pub const SQL: &str = r#"
CREATE TABLE t(id INTEGER PRIMARY KEY, name TEXT, v REAL, note TEXT);
WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i < 80000)
INSERT INTO t SELECT i, 'name' || (i * 7919 % 60000), i * 1.5,
  substr('some text that is longer than others and cut somewhere', 1, i % 50) FROM n;
CREATE INDEX byname ON t(name);
SELECT count(*), sum(v) FROM t WHERE name LIKE 'name1%';
SELECT substr(name, 1, 6) AS p, count(*), avg(v), group_concat(id % 10, '')
  FROM t GROUP BY p ORDER BY count(*) DESC, p LIMIT 3;
SELECT count(*) FROM t a JOIN t b ON a.name = b.name WHERE a.id % 3 = 0;
UPDATE t SET note = note || name WHERE id % 2 = 0;
DELETE FROM t WHERE id % 5 = 0;
SELECT count(*), max(length(note)), sum(length(replace(upper(note), 'A', 'bb'))) FROM t;
"#;

/// Names, arrays, curves, text; written as PDF.
pub const POSTSCRIPT: &str = r#"%!PS
/Helvetica findfont 9 scalefont setfont
/seed 42 def
/below { /seed seed 16807 mul 2147483647 mod cvi def seed exch mod } def
/table 500 dict def
1 1 2 {
 pop
 0 1 3000 { /i exch def
   /words 20 array def 0 1 19 { words exch i 32 string cvs put } for
   table i 500 mod words put
   newpath 600 below 800 below moveto
   1 1 6 { pop 6 { 600 below } repeat curveto } for
   i 10 mod 10 div setgray i 3 mod 0 eq { fill } { stroke } ifelse
   600 below 800 below moveto (text number ) show i 10 string cvs show
 } for
 showpage
} for
"#;

/// Functions in C, one calling the other.
pub fn c() -> String {
    let mut text = String::from("#include <stdlib.h>\n#include <string.h>\n#include <stdio.h>\n");
    for i in 0..350 {
        let (ints, chars, next) = (i % 7 + 2, i % 30 + 4, (i + 349) % 350);
        let _ = writeln!(
            text,
            "struct s{i} {{ int a[{ints}]; double d; struct s{next} *next; char name[{chars}]; }};\n\
             static int f{i}(struct s{i} *p, int n) {{ int r = 0;\n\
             for (int i = 0; i < n; i++) {{ p[i].a[i % {ints}] += i * {i};\n\
             if (p[i].d > {i}.5) r += p[i].a[0] ^ n; else switch (n % 5) {{\n\
             case 0: r += strlen(p[i].name); break; case 1: r -= i * n; break;\n\
             case 2: r ^= (int)p[i].d; break;\n\
             default: snprintf(p[i].name, sizeof p[i].name, \"%d of {i}\", r); }} }} return r; }}\n\
             int g{i}(int n) {{ struct s{i} *p = calloc(n, sizeof *p);\n\
             int r = f{i}(p, n){}; free(p); return r; }}",
            if i > 0 { format!(" + g{}(n / 2)", i - 1) } else { String::new() },
        );
    }
    text
}

/// Whole numbers and inequalities, then a multiplier of bits.
pub fn smt() -> String {
    const VARIABLES: u64 = 60;
    let mut numbers = Numbers::new(7);
    let mut text = String::from("(set-logic QF_LIA)\n");
    for i in 0..VARIABLES {
        let _ = writeln!(text, "(declare-fun x{i} () Int)(assert (and (>= x{i} 0) (<= x{i} 40)))");
    }
    for _ in 0..50 {
        let relation = ["<=", ">=", "distinct"][numbers.below(3) as usize];
        let _ = write!(text, "(assert ({relation} (+");
        for _ in 0..5 {
            let (factor, variable) = (numbers.below(9) + 1, numbers.below(VARIABLES));
            let factor =
                if numbers.below(2) == 0 { factor.to_string() } else { format!("(- {factor})") };
            let _ = write!(text, " (* {factor} x{variable})");
        }
        let _ = writeln!(text, ") {}))", numbers.below(60));
    }
    text.push_str(
        "(check-sat)\n(reset)(set-logic QF_BV)\n\
         (declare-fun a () (_ BitVec 16))(declare-fun b () (_ BitVec 16))\n\
         (declare-fun c () (_ BitVec 16))\n\
         (assert (distinct (bvmul a (bvadd b c)) (bvadd (bvmul c a) (bvmul a b))))\n\
         (assert (bvult a #x0020))(assert (bvult b #x003f))(check-sat)\n",
    );
    text
}
