//! A profile by sampling says what a program holds: estimates within five standard deviations of the truth.

#![allow(unsafe_code)] // what the tests share calls the dynamic linker

mod common;
#[path = "../../malloc/src/pprof/decode.rs"]
mod decode;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use common::{compiled, library, preloaded, program};
use decode::{fields, numbers, varint};

/// What `sample.c` allocates: name, bytes, blocks, and how many of them are left.
const TRUTH: &[(&str, u64, u64, u64)] = &[
    ("small", 40, 200_000, 100_000),
    ("middle", 3000, 6000, 3000),
    ("big", 300_000, 60, 30),
    ("cleared", 500, 20_000, 10_000),
    ("aligned", 2048, 6000, 3000),
    ("posix", 1000, 10_000, 5000),
    ("passing", 64, 100_000, 0),
];

/// A profile: its period, and for each address its numbers.
struct Profile {
    types: Vec<String>,
    period: u64,
    mapped: Vec<String>,
    comments: usize,
    samples: Vec<(u64, Vec<u64>)>,
    /// The calls around each sample's, the innermost first.
    around: Vec<Vec<u64>>,
}

fn packed(mut bytes: &[u8]) -> Vec<u64> {
    std::iter::from_fn(|| (!bytes.is_empty()).then(|| varint(&mut bytes))).collect()
}

fn read(path: &Path) -> Profile {
    let bytes = std::fs::read(path).expect("a profile");
    let all = fields(&bytes);
    let of = |field| all.iter().filter(move |one| one.0 == field);
    let strings: Vec<_> = of(6).map(|one| String::from_utf8_lossy(one.2).into_owned()).collect();
    let named = |message: &[u8], field| {
        let name = numbers(message).into_iter().find(|one| one.0 == field).expect("a name");
        strings[name.1 as usize].clone()
    };
    let address = |message| {
        let numbers: HashMap<_, _> = numbers(message).into_iter().collect();
        (numbers[&1], numbers.get(&3).copied().unwrap_or(0))
    };
    let places: HashMap<_, _> = of(4).map(|one| address(one.2)).collect();
    let sample = |message| {
        let parts: HashMap<_, _> = fields(message).into_iter().map(|one| (one.0, one.2)).collect();
        let calls: Vec<_> = packed(parts[&1]).iter().map(|call| places[call]).collect();
        (calls, packed(parts[&2]))
    };
    let samples: Vec<_> = of(2).map(|one| sample(one.2)).collect();
    Profile {
        types: of(1).map(|one| named(one.2, 1)).collect(),
        period: of(12).next().expect("a period").1,
        mapped: of(3).map(|one| named(one.2, 5)).collect(),
        comments: of(13).count(),
        around: samples.iter().map(|(calls, _)| calls[1..].to_vec()).collect(),
        samples: samples.into_iter().map(|(calls, numbers)| (calls[0], numbers)).collect(),
    }
}

/// The only profile in a folder.
fn written(folder: &Path) -> PathBuf {
    let mut files = std::fs::read_dir(folder).expect("a folder");
    let file = files.next().expect("one file").expect("readable").path();
    assert!(files.next().is_none());
    let name = file.file_name().expect("a name").to_string_lossy().into_owned();
    assert!(name.starts_with("pagoda-malloc.") && name.ends_with(".heap"), "{name}");
    file
}

/// Runs the program in a folder of its own. That, and where its functions were.
fn run(name: &str, options: &str, words: &[&str]) -> (PathBuf, HashMap<String, u64>) {
    run_as(program("sample"), name, options, words)
}

fn run_as(
    program: &Path,
    name: &str,
    options: &str,
    words: &[&str],
) -> (PathBuf, HashMap<String, u64>) {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("sample-{name}"));
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir_all(&folder).expect("a folder");
    let mut command = preloaded(program);
    command.args(words).current_dir(&folder).env("PAGODA_MALLOC", options);
    let output = command.output().expect("the program is there");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let places = said.lines().filter_map(|line| line.split_once(' '));
    let number = |text: &str| text.parse().expect("an address");
    (folder, places.map(|(name, at)| (name.to_owned(), number(at))).collect())
}

/// Blocks and bytes of a place: `offset` 0 of all, 2 of live ones. Its calls of malloc stand together.
fn sums(profile: &Profile, place: u64, offset: usize) -> (f64, f64) {
    let inside = profile.samples.iter().filter(|sample| (place..place + 256).contains(&sample.0));
    inside.fold((0.0, 0.0), |sum, (_, values)| {
        (sum.0 + values[offset] as f64, sum.1 + values[offset + 1] as f64)
    })
}

fn must_agree(profile: &Profile, place: (&str, u64), offset: usize, bytes: u64, blocks: u64) {
    let p = 1.0 - f64::exp(-((bytes + 1) as f64) / profile.period as f64);
    let (found, space) = sums(profile, place.1, offset);
    // Estimates are rounded: half a block for each place, half a byte for each sample.
    let allowed = 5.0 * (blocks as f64 * (1.0 - p) / p).sqrt() + 0.5;
    let name = place.0;
    assert!((found - blocks as f64).abs() <= allowed, "{name}: {found} of {blocks} blocks");
    let right = (blocks * bytes) as f64;
    let allowed = allowed * bytes as f64 + blocks as f64;
    assert!((space - right).abs() <= allowed, "{name}: {space} of {right} bytes");
}

fn must_tell_the_truth(profile: &Profile, places: &HashMap<String, u64>, all: bool) {
    for &(name, bytes, blocks, left) in TRUTH {
        let place = (name, places[name]);
        if all {
            must_agree(profile, place, 0, bytes, blocks);
        }
        must_agree(profile, place, 2, bytes, left);
    }
    // Here one address allocates 10 bytes, and the next resizes them to 700.
    must_agree(profile, ("resized", places["resized"]), 2, 700, 10_000);
}

#[test]
fn estimates_at_exit_are_near_the_truth_for_each_place() {
    let (folder, places) = run("mix", "sample=16384", &[]);
    let profile = read(&written(&folder));
    assert_eq!(profile.types, ["alloc_objects", "alloc_space", "inuse_objects", "inuse_space"]);
    assert_eq!((profile.period, profile.comments), (16384, 0));
    let own = program("sample").to_string_lossy().into_owned();
    assert!(profile.mapped.contains(&own), "{:?}", profile.mapped);
    assert!(profile.samples.len() < 50, "one for each place");
    must_tell_the_truth(&profile, &places, true);
}

#[test]
fn each_place_has_the_calls_around_it() {
    // One has the unwinder loaded, as programs in C++ and Rust have it.
    let unwinder = ["-Wl,--no-as-needed", "-lgcc_s"];
    let (plain, own) = (program("sample"), compiled("sample", "sample-unwinder", &unwinder));
    for (program, name, words, level) in [
        (plain, "calls", &[][..], Some(1)),
        (&own, "calls-unwinder", &[][..], Some(1)),
        (plain, "calls-thread", &["threads"], None),
    ] {
        let (folder, places) = run_as(program, name, "sample=16384", words);
        let profile = read(&written(&folder));
        let inside = |name: &str, at: u64| (places[name]..places[name] + 512).contains(&at);
        for kind in ["small", "middle", "big", "cleared", "aligned", "posix", "resized"] {
            let all = profile.samples.iter().zip(&profile.around);
            let of =
                all.filter(|(sample, _)| (places[kind]..places[kind] + 256).contains(&sample.0));
            let arounds: Vec<_> = of.map(|(_, around)| around).collect();
            assert!(!arounds.is_empty(), "{name}: {kind}");
            for around in arounds {
                assert!(inside("make_all", around[0]), "{name}, {kind}: {around:x?}");
                // Below is the C library, which starts programs and threads.
                let main = around.iter().position(|&at| inside("main", at));
                assert!(
                    main == level && (3..8).contains(&around.len()),
                    "{name}, {kind}: {around:x?}"
                );
            }
        }
    }
}

#[test]
fn each_operator_new_is_told_where_it_is_called() {
    const KINDS: &[(&str, &str)] = &[
        ("one", "::operator new(5000)"),
        ("array", "::operator new[](5000)"),
        ("small", "::operator new(50)"),
        ("nothrow", "::operator new(5000, std::nothrow)"),
        ("aligned", "::operator new(5000, std::align_val_t(256))"),
        ("both", "::operator new[](5000, std::align_val_t(64), std::nothrow)"),
    ];
    let make = |&(name, call): &(&str, &str)| {
        format!("PLACE void *{name}() {{ void *volatile p = {call}; return p; }}\n")
    };
    let call = |&(name, _): &(&str, &str)| {
        format!(
            "std::printf(\"{name} %zu\\n\", (std::size_t){name});\n\
             for (int i = 0; i < 3000; i++) held[i % 7] = {name}();\n"
        )
    };
    let source = format!(
        "#include <cstddef>\n#include <cstdio>\n#include <new>\n\
         #define PLACE __attribute__((noinline, noclone, aligned(256)))\n{}\
         void *volatile held[7];\nint main() {{ {} }}\n",
        KINDS.iter().map(make).collect::<String>(),
        KINDS.iter().map(call).collect::<String>()
    );
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let (path, program) = (directory.join("sample-new.cc"), directory.join("sample-new"));
    std::fs::write(&path, source).expect("a source");
    let mut compiler = Command::new("g++");
    compiler.args(["-std=c++17", "-O1", "-o"]).arg(&program).arg(&path);
    assert!(compiler.status().expect("g++ runs").success());
    let (folder, places) = run_as(&program, "operators", "sample=16384", &[]);
    let profile = read(&written(&folder));
    for (name, _) in KINDS {
        let place = places[*name]..places[*name] + 256;
        let all = profile.samples.iter().zip(&profile.around);
        let found: Vec<_> = all.filter(|(sample, _)| place.contains(&sample.0)).collect();
        assert!(
            !found.is_empty() && found.iter().all(|one| one.1.len() >= 2),
            "{name}: {found:x?}"
        );
    }
}

#[test]
fn the_mean_distance_is_half_a_mebibyte_if_none_is_given() {
    let (folder, places) = run("default", "sample", &[]);
    let profile = read(&written(&folder));
    assert_eq!(profile.period, 512 << 10);
    must_tell_the_truth(&profile, &places, true);
}

#[test]
fn what_one_thread_allocates_and_another_frees_is_gone() {
    let (folder, places) = run("threads", "sample=16384", &["threads"]);
    must_tell_the_truth(&read(&written(&folder)), &places, true);
}

#[test]
fn a_child_has_what_it_did_not_free_and_its_parent_has_all() {
    let (folder, places) = run("fork", "sample=16384", &["fork", "../sample-of-a-child"]);
    let parent = read(&written(&folder));
    must_tell_the_truth(&parent, &places, true);
    let child = read(&folder.join("../sample-of-a-child"));
    assert_eq!(sums(&child, places["small"], 2), (0.0, 0.0));
    assert_eq!(sums(&child, places["small"], 0), sums(&parent, places["small"], 0));
    for name in ["middle", "big", "posix"] {
        assert_eq!(sums(&child, places[name], 2), sums(&parent, places[name], 2), "{name}");
    }
}

#[test]
fn every_block_is_told_in_hardened_mode_which_has_no_use_for_samples() {
    let (folder, places) = run("hardened", "sample=16384,profile", &[]);
    let profile = read(&written(&folder));
    assert_eq!(profile.types, ["inuse_objects", "inuse_space"]);
    let (small, period) = (sums(&profile, places["small"], 0), profile.period);
    assert_eq!((small, period), ((100_000.0, 4_000_000.0), 1));
}

#[test]
fn programs_run_and_their_profiles_can_be_read() {
    let script = "import json, threading, subprocess\n\
        d = {str(i): list(range(i % 50)) for i in range(20000)}\n\
        ts = [threading.Thread(target=lambda: json.loads(json.dumps(d))) for _ in range(4)]\n\
        [t.start() for t in ts]; [t.join() for t in ts]\n\
        print(subprocess.run(['echo', 'child'], capture_output=True).stdout.decode().strip(), len(d))";
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("sample-python");
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir_all(&folder).expect("a folder");
    let mut python = preloaded("python3");
    python.args(["-c", script]).current_dir(&folder).env("PAGODA_MALLOC", "sample=4096");
    python.env("PYTHONMALLOC", "malloc");
    let output = python.output().expect("python runs");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "child 20000\n");
    let files = std::fs::read_dir(&folder).expect("a folder");
    let profiles: Vec<_> = files.map(|file| read(&file.expect("readable").path())).collect();
    assert!(profiles.iter().any(|profile| profile.samples.len() > 20));
}

/// Instructions of a program with so many pairs of malloc and free; of one function only if it is named.
fn instructions(pairs: u32, options: &str, function: Option<&str>) -> u64 {
    let mut command = Command::new("valgrind");
    command.args(["--tool=callgrind", "--callgrind-out-file=/dev/null"]);
    command.arg("--soname-synonyms=somalloc=nouserintercepts");
    command.args(function.map(|function| format!("--toggle-collect={function}")));
    command.arg(program("sample")).args(["pairs", &pairs.to_string()]);
    command.env("LD_PRELOAD", library()).env("PAGODA_MALLOC", options);
    command.current_dir(env!("CARGO_TARGET_TMPDIR"));
    let output = command.output().expect("valgrind runs");
    let text = String::from_utf8_lossy(&output.stderr);
    let line = text.lines().find_map(|line| line.split_once("Collected : "));
    let number = line.and_then(|(_, number)| number.trim().parse().ok());
    number.unwrap_or_else(|| panic!("no count: {text}"))
}

#[test]
#[ignore = "needs valgrind"]
fn the_option_costs_some_instructions_of_malloc_and_none_of_free_nor_without_it() {
    const PAIRS: u32 = 200_000;
    let of = |function| instructions(PAIRS, "", Some(function)) / u64::from(PAIRS);
    assert_eq!([of("malloc"), of("free")], [15, 18]);
    let pair = |options| {
        let [less, more] = [PAIRS, 2 * PAIRS].map(|pairs| instructions(pairs, options, None));
        (more - less) as f64 / f64::from(PAIRS)
    };
    let freed = instructions(PAIRS, "sample", Some("free")) as f64 / f64::from(PAIRS);
    let [plain, sampled, hardened] = ["", "sample", "hardened"].map(pair);
    let [sampled, hardened] = [sampled, hardened].map(|pair| pair - plain);
    println!(
        "a pair: {sampled:.1} more when sampled, {hardened:.1} more hardened; free {freed:.2}"
    );
    assert!(sampled < 30.0 && freed < 19.0);
}
