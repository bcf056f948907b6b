//! A plain Rust program that allocates much: strings, maps, sorted vectors, boxed trees; then what
//! the standard library does with threads ([`crew`]). Its output depends on nothing but its
//! argument, so that two systems can be compared.
//!
//! `mill [WORDS]`, exit status 17 when all is well.

mod crew;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::process::ExitCode;

/// A reproducible source of numbers (xorshift64).
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}

/// A binary search tree, one allocation for each node.
#[derive(Default)]
struct Tree(Option<Box<(u64, Tree, Tree)>>);

impl Tree {
    fn insert(&mut self, value: u64) {
        match &mut self.0 {
            Some(node) if value < node.0 => node.1.insert(value),
            Some(node) => node.2.insert(value),
            None => self.0 = Some(Box::new((value, Self::default(), Self::default()))),
        }
    }

    fn depth(&self) -> usize {
        self.0.as_ref().map_or(0, |node| 1 + node.1.depth().max(node.2.depth()))
    }
}

fn words(numbers: &mut Numbers, count: usize) -> Vec<String> {
    const SYLLABLES: [&str; 8] = ["pa", "go", "da", "ri", "mo", "ku", "se", "tan"];
    (0..count)
        .map(|_| {
            let syllables = 1 + numbers.next() % 4;
            (0..syllables).map(|_| SYLLABLES[numbers.next() as usize % 8]).collect()
        })
        .collect()
}

fn main() -> ExitCode {
    let count = std::env::args().nth(1).and_then(|n| n.parse().ok()).unwrap_or(100_000);
    let mut numbers = Numbers(0x9e37_79b9_7f4a_7c15);

    let all = words(&mut numbers, count);
    let mut tally: HashMap<&str, u64> = HashMap::new();
    for word in &all {
        *tally.entry(word).or_default() += 1;
    }
    let mut ranking: Vec<_> = tally.iter().map(|(word, times)| (*times, *word)).collect();
    ranking.sort_by(|a, b| b.cmp(a));
    println!("{} words, {} different", all.len(), ranking.len());
    for (times, word) in ranking.iter().take(5) {
        println!("{times:8} {word}");
    }

    let mut index: BTreeMap<String, Vec<usize>> = BTreeMap::new();
    for (place, word) in all.iter().enumerate() {
        index.entry(word.chars().rev().collect()).or_default().push(place);
    }
    let longest = index.iter().max_by_key(|(word, places)| (places.len(), word.as_str()));
    println!("most places: {:?}", longest.map(|(word, places)| (word, places.len(), places[0])));

    let mut tree = Tree::default();
    (0..count / 4).for_each(|_| tree.insert(numbers.next()));
    println!("a tree of {} is {} deep", count / 4, tree.depth());

    let mut queue: VecDeque<Vec<u8>> = VecDeque::new();
    let mut sum = 0u64;
    for turn in 0..count {
        queue.push_back(vec![turn as u8; (numbers.next() % 3000) as usize]);
        if queue.len() > 500 {
            let block = queue.pop_front().unwrap_or_default();
            sum += block.iter().map(|&byte| u64::from(byte)).sum::<u64>();
        }
    }
    println!("a queue passed {sum} through");

    let joined = all.join(" ");
    println!("{} bytes of text, {} spaces", joined.len(), joined.matches(' ').count());
    crew::work();
    ExitCode::from(17)
}
