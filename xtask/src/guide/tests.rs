//! The guide's check finds what has drifted.

use super::*;

/// A tree of one file and one example.
struct Small;

const FILE: &str = "fn main() {\n    // ANCHOR: body\n    one();\n\n        // ANCHOR: inner\n        \
                    two();\n    // ANCHOR_END: inner\n    // ANCHOR_END: body\n}\n";
const OUTPUT: &str = "preface\n== first\nalpha\n\n== second\nbeta\n";

impl Source for Small {
    fn listing(&mut self, file: &str, anchor: &str) -> Result<String> {
        assert_eq!(file, "src/a.rs");
        anchored(FILE, anchor)
    }

    fn output(&mut self, package: &str, example: &str, section: &str) -> Result<String> {
        assert_eq!((package, example), ("pack", "show"));
        section_of(OUTPUT, section)
    }
}

fn chapter(comment: &str, language: &str, block: &str) -> String {
    format!("# Title\n\n{comment}\n```{language}\n{block}```\n\nafter\n")
}

const LISTING: &str = "<!-- listing: src/a.rs#body -->";
const SECTION: &str = "<!-- output: pack show#first -->";

#[test]
fn the_guide_shows_what_the_tree_holds() {
    check().unwrap();
}

#[test]
fn a_block_is_what_its_source_is() {
    for (comment, language, block) in
        [(LISTING, "rust", "one();\n\n    two();\n"), (SECTION, "text", "alpha\n")]
    {
        let right = chapter(comment, language, block);
        assert_eq!(render(&right, &mut Small).unwrap(), right);
        // Changed in the chapter, or in the tree: both look like this.
        let drifted = right.replace("one()", "uno()").replace("alpha", "alfa");
        let fresh = render(&drifted, &mut Small).unwrap();
        assert_eq!(fresh, right);
        let report = differences("guide/a.md", &drifted, &fresh).unwrap();
        assert!(report.starts_with("guide/a.md:5: says"), "{report}");
        // A line too few at the end.
        let (less, _) = right.rsplit_once("after").unwrap();
        assert!(differences("guide/a.md", less, &right).is_some());
    }
}

#[test]
fn a_block_from_nowhere_is_refused() {
    for language in INCLUDED {
        assert!(render(&chapter("", language, "made up\n"), &mut Small).is_err());
    }
    assert!(render(&chapter("", "console", "$ cargo xtask run\n"), &mut Small).is_ok());
    for comment in [
        "<!-- listing: src/a.rs#body", // does not end
        "<!-- listing: src/a.rs#bodies -->",
        "<!-- lising: src/a.rs#body -->",
        "<!-- output: pack show#third -->",
        "<!-- output: pack#first -->",
    ] {
        assert!(render(&chapter(comment, "rust", ""), &mut Small).is_err(), "{comment}");
    }
    assert!(render(&format!("{LISTING}\nno block\n"), &mut Small).is_err());
    assert!(render(&format!("{LISTING}\n```rust\n"), &mut Small).is_err());
}

#[test]
fn an_anchor_has_one_beginning_and_one_end() {
    assert_eq!(anchored(FILE, "inner").unwrap(), "two();\n");
    assert!(anchored(&FILE.replace("ANCHOR_END: inner", ""), "inner").is_err());
    assert!(anchored(&FILE.repeat(2), "inner").is_err());
    assert!(anchored(FILE, "none").is_err());
}

#[test]
fn the_guide_tells_the_truth_about_tests() {
    let row = "| a | b | `one_test`, `another_test` |\n| c | `not_this` | the type |";
    assert_eq!(named_tests(row).collect::<Vec<_>>(), ["one_test", "another_test"]);
}

#[test]
fn links_and_paths_lead_somewhere() {
    let text = "[a](b.md#c) [w](https://x.org/y) `crates/none` `crates/frames` `let x`";
    assert_eq!(named_files(text), ["b.md", "crates/none", "crates/frames"]);
    let chapter = build::root().join("guide/README.md");
    assert!(exists(&chapter, "pitfalls.md") && exists(&chapter, "crates/frames"));
    assert!(!exists(&chapter, "crates/none"));
}
