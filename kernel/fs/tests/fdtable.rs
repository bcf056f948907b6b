//! The descriptor table against a map.

mod common;

use std::collections::BTreeMap;
use std::sync::Arc;

use common::{READ, Short, new_vfs};
use pagoda_kernel_fs::{Errno, FdTable, OpenFile};
use proptest::prelude::*;

#[derive(Clone, Debug)]
enum Step {
    Insert(usize, bool),
    Replace(i32, bool),
    Remove(i32),
    Mark(i32, bool),
    Exec,
    CloseFrom(usize),
    Fork,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0usize..14, any::<bool>()).prop_map(|(from, c)| Step::Insert(from / 2, c)),
        2 => (-1i32..14, any::<bool>()).prop_map(|(fd, c)| Step::Replace(fd, c)),
        4 => (-1i32..14).prop_map(Step::Remove),
        1 => (-1i32..14, any::<bool>()).prop_map(|(fd, c)| Step::Mark(fd, c)),
        1 => Just(Step::Exec),
        1 => (0usize..14).prop_map(Step::CloseFrom),
        1 => Just(Step::Fork),
    ]
}

const LIMIT: usize = 12;
type Model = BTreeMap<i32, (Arc<OpenFile>, bool)>;

fn apply(
    table: &mut FdTable,
    model: &mut Model,
    file: Arc<OpenFile>,
    step: &Step,
) -> Result<(), TestCaseError> {
    match *step {
        Step::Insert(from, cloexec) => {
            let free = (from as i32..LIMIT as i32).find(|fd| !model.contains_key(fd));
            let got = table.insert_from(file.clone(), from, cloexec, LIMIT);
            prop_assert_eq!(got, free.ok_or(Errno::EMFILE));
            if let Some(fd) = free {
                model.insert(fd, (file, cloexec));
            }
        }
        Step::Replace(fd, cloexec) => {
            let got = table.replace(fd, file.clone(), cloexec, LIMIT);
            if !(0..LIMIT as i32).contains(&fd) {
                prop_assert!(matches!(got, Err(Errno::EBADF)));
                return Ok(());
            }
            let old = model.insert(fd, (file, cloexec)).map(|(file, _)| Arc::as_ptr(&file));
            prop_assert_eq!(got.unwrap().map(|file| Arc::as_ptr(&file)), old);
        }
        Step::Remove(fd) => {
            let old = model.remove(&fd).map(|(file, _)| Arc::as_ptr(&file)).ok_or(Errno::EBADF);
            prop_assert_eq!(table.remove(fd).map(|file| Arc::as_ptr(&file)), old);
        }
        Step::Mark(fd, cloexec) => {
            let there = model.get_mut(&fd).map(|entry| entry.1 = cloexec);
            prop_assert_eq!(table.set_cloexec(fd, cloexec), there.ok_or(Errno::EBADF));
        }
        Step::Exec => {
            while table.take_next_cloexec(0).is_some() {}
            model.retain(|_, entry| !entry.1);
        }
        Step::CloseFrom(from) => {
            while table.take_next(from).is_some() {}
            model.retain(|fd, _| *fd < from as i32);
        }
        Step::Fork => *table = table.try_clone().unwrap(),
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_table_is_a_map_with_the_lowest_number_first(steps in prop::collection::vec(step(), 1..80)) {
        let vfs = new_vfs();
        let (mut table, mut model) = (FdTable::new(), Model::new());
        for step in &steps {
            let file = vfs.open_at("/", READ).unwrap();
            apply(&mut table, &mut model, file, step)?;
            let ours: Vec<_> = table.iter().map(|(fd, file)| (fd, Arc::as_ptr(file))).collect();
            let theirs: Vec<_> = model.iter().map(|(fd, e)| (*fd, Arc::as_ptr(&e.0))).collect();
            prop_assert_eq!(ours, theirs);
            for fd in -1..LIMIT as i32 + 2 {
                let marked = model.get(&fd).map(|entry| entry.1).ok_or(Errno::EBADF);
                prop_assert_eq!(table.cloexec(fd), marked);
            }
        }
    }
}

#[test]
fn a_number_beyond_the_limit_is_refused() {
    let vfs = new_vfs();
    let file = vfs.open_at("/", READ).unwrap();
    let mut table = FdTable::new();
    assert_eq!(table.insert_from(file.clone(), 10, false, 10), Err(Errno::EINVAL));
    assert_eq!(table.insert(file.clone(), false, 0), Err(Errno::EMFILE));
    assert!(matches!(table.replace(i32::MAX, file, false, usize::MAX), Err(Errno::EBADF)));
    assert!(table.is_empty());
}
