//! Regular files against a plain vector of bytes.

mod common;

use common::{CREATE, READ, Short, new_vfs, number, read_all, size_of};
use pagoda_kernel_fs::{Errno, OpenFlags, SeekFrom, Vfs};
use proptest::prelude::*;

/// Offsets around page and chunk borders.
fn offset() -> impl Strategy<Value = u64> {
    let near = prop::sample::select(vec![0u64, 1, 4096, 8192, 12288, 64 * 4096, 65 * 4096]);
    (near, 0u64..9).prop_map(|(near, more)| (near + more).saturating_sub(4))
}

#[derive(Clone, Debug)]
enum Step {
    Write(u64, Vec<u8>),
    Append(Vec<u8>),
    Truncate(u64),
    Punch(u64, u64),
    Reserve(u64, u64, bool),
    Read(u64, usize),
    Page(u64),
    Hole(u64, bool),
}

fn step() -> impl Strategy<Value = Step> {
    let bytes = prop_oneof![
        prop::collection::vec(1u8.., 1..20),
        (1u8.., 1usize..9000).prop_map(|(byte, len)| vec![byte; len]),
    ];
    prop_oneof![
        5 => (offset(), bytes.clone()).prop_map(|(at, bytes)| Step::Write(at, bytes)),
        1 => bytes.prop_map(Step::Append),
        2 => offset().prop_map(Step::Truncate),
        2 => (offset(), 1u64..10000).prop_map(|(at, len)| Step::Punch(at, len)),
        1 => (offset(), 1u64..10000, any::<bool>()).prop_map(|(a, l, k)| Step::Reserve(a, l, k)),
        3 => (offset(), 0usize..9000).prop_map(|(at, len)| Step::Read(at, len)),
        1 => (0u64..70).prop_map(Step::Page),
        2 => (offset(), any::<bool>()).prop_map(|(at, hole)| Step::Hole(at, hole)),
    ]
}

static BASE: [u8; 10_000] = [7; 10_000];

fn apply(vfs: &Vfs, model: &mut Vec<u8>, step: &Step) -> Result<(), TestCaseError> {
    let file = vfs.open_at("/file", OpenFlags::RDWR).unwrap();
    match step {
        Step::Write(at, bytes) => {
            prop_assert_eq!(file.pwrite(bytes, *at), Ok(bytes.len()));
            let end = *at as usize + bytes.len();
            model.resize(model.len().max(end), 0);
            model[*at as usize..end].copy_from_slice(bytes);
        }
        Step::Append(bytes) => {
            file.set_flags(OpenFlags::APPEND);
            prop_assert_eq!(file.write(bytes), Ok(bytes.len()));
            model.extend_from_slice(bytes);
            prop_assert_eq!(file.seek(SeekFrom::Current, 0), Ok(model.len() as u64));
        }
        Step::Truncate(len) => {
            prop_assert_eq!(file.truncate(*len), Ok(()));
            model.resize(*len as usize, 0);
        }
        Step::Punch(at, len) => {
            prop_assert_eq!(file.allocate(3, *at, *len), Ok(()));
            let end = ((at + len) as usize).min(model.len());
            model[(*at as usize).min(end)..end].fill(0);
        }
        Step::Reserve(at, len, keep) => {
            prop_assert_eq!(file.allocate(u32::from(*keep), *at, *len), Ok(()));
            if !keep {
                model.resize(model.len().max((at + len) as usize), 0);
            }
        }
        Step::Read(at, len) => {
            let mut bytes = vec![0xee; *len];
            let start = (*at as usize).min(model.len());
            let expected = &model[start..(start + len).min(model.len())];
            prop_assert_eq!(file.pread(&mut bytes, *at), Ok(expected.len()));
            prop_assert_eq!(&bytes[..expected.len()], expected);
        }
        Step::Page(index) => {
            let mut page = [0xee; 4096];
            let start = *index as usize * 4096;
            let answer = file.mappable().unwrap().read_page(*index, &mut page);
            match model.get(start..).filter(|rest| !rest.is_empty()) {
                None => prop_assert_eq!(answer, Err(Errno::ENXIO)),
                Some(rest) => {
                    let len = rest.len().min(4096);
                    prop_assert_eq!(answer, Ok(()));
                    prop_assert_eq!(&page[..len], &rest[..len]);
                    prop_assert!(page[len..].iter().all(|&byte| byte == 0));
                }
            }
        }
        Step::Hole(at, hole) => check_hole(&file, model, *at, *hole)?,
    }
    Ok(())
}

/// Where a file has data is its own business, as long as holes read as zeros and the two searches
/// agree with each other.
fn check_hole(
    file: &pagoda_kernel_fs::OpenFile,
    model: &[u8],
    at: u64,
    hole: bool,
) -> Result<(), TestCaseError> {
    let from = if hole { SeekFrom::Hole } else { SeekFrom::Data };
    let Ok(found) = file.seek(from, at as i64) else {
        let rest = model.get(at as usize..).unwrap_or_default();
        prop_assert!(rest.is_empty() || (!hole && rest.iter().all(|&byte| byte == 0)));
        return Ok(());
    };
    prop_assert!(found >= at && found <= model.len() as u64);
    if hole {
        let next = file.seek(SeekFrom::Data, found as i64).unwrap_or(model.len() as u64);
        prop_assert!(model[found as usize..next as usize].iter().all(|&byte| byte == 0));
    } else {
        prop_assert!(model[at as usize..found as usize].iter().all(|&byte| byte == 0));
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_file_is_a_vector_of_bytes(
        base in 0usize..10_000,
        steps in prop::collection::vec(step(), 1..30),
    ) {
        let vfs = new_vfs();
        let untouched = vfs.used_bytes();
        vfs.place_file(b"/file", &BASE[..base], 0o644).unwrap();
        let mut model = BASE[..base].to_vec();
        for step in &steps {
            apply(&vfs, &mut model, step)?;
            let file = vfs.open_at("/file", READ).unwrap();
            prop_assert_eq!(size_of(&file), model.len() as u64);
            prop_assert_eq!(file.stat().size, model.len() as u64);
        }
        prop_assert_eq!(vfs.get("/file").unwrap(), model);
        vfs.unlink(&vfs.root_view(), b"/file").unwrap();
        prop_assert_eq!(vfs.used_bytes(), untouched, "budget");
    }
}

#[test]
fn a_write_beyond_the_budget_is_no_space_and_costs_nothing() {
    let vfs = Vfs::new(std::sync::Arc::new(common::TestHost::default()), 64 << 10).unwrap();
    let file = vfs.open_at("/big", CREATE).unwrap();
    let before = vfs.used_bytes();
    assert_eq!(file.allocate(0, 0, 1 << 40).map_err(number), Err(28));
    let mut written = 0;
    let error = loop {
        match file.write(&[1; 5000]) {
            Ok(len) => written += len,
            Err(error) => break error,
        }
    };
    assert_eq!(error, Errno::ENOSPC);
    assert!(written > 40_000 && written <= 64 << 10, "{written}");
    assert_eq!(read_all(&vfs.open_at("/big", READ).unwrap()).unwrap(), vec![1; written]);
    assert_eq!(vfs.statfs(vfs.root()).blocks_free, 0);
    file.truncate(0).unwrap();
    assert_eq!(vfs.used_bytes(), before);
    assert_eq!(file.write(&[2; 100]), Ok(100));
}

#[test]
fn a_file_lives_until_it_is_closed() {
    let vfs = new_vfs();
    vfs.put("/gone", b"still here");
    let before = vfs.used_bytes();
    let file = vfs.open_at("/gone", READ).unwrap();
    vfs.unlink(&vfs.root_view(), b"/gone").unwrap();
    assert_eq!(vfs.get("/gone"), Err(Errno::ENOENT));
    assert_eq!(file.stat().nlink, 0);
    assert_eq!(read_all(&file).unwrap(), b"still here");
    drop(file);
    assert!(vfs.used_bytes() < before - 4096);
}

#[test]
fn an_offset_is_shared_by_the_copies_of_a_descriptor() {
    let vfs = new_vfs();
    vfs.put("/file", b"abcdef");
    let mut table = pagoda_kernel_fs::FdTable::new();
    let fd = table.insert(vfs.open_at("/file", READ).unwrap(), false, 10).unwrap();
    let child = table.try_clone().unwrap();
    let mut two = [0; 2];
    assert_eq!(table.get(fd).unwrap().read(&mut two), Ok(2));
    assert_eq!(child.get(fd).unwrap().read(&mut two), Ok(2));
    assert_eq!(&two, b"cd");
}

#[test]
fn a_huge_sparse_file_costs_what_it_holds() {
    let vfs = new_vfs();
    let file = vfs.open_at("/sparse", CREATE).unwrap();
    let before = vfs.used_bytes();
    file.pwrite(b"end", 1 << 45).unwrap();
    assert_eq!(vfs.used_bytes() - before, 4096);
    assert_eq!(file.stat().blocks, 8);
    assert_eq!(file.seek(SeekFrom::Data, 0), Ok(1 << 45));
    assert_eq!(file.pwrite(b"x", i64::MAX as u64), Err(Errno::EFBIG));
    file.truncate(i64::MAX as u64).unwrap();
    assert_eq!(file.seek(SeekFrom::End, 1), Err(Errno::EINVAL));
}

#[test]
fn an_untouched_initramfs_file_costs_no_pages() {
    let vfs = new_vfs();
    let before = vfs.used_bytes();
    vfs.place_file(b"/base", &BASE, 0o755).unwrap();
    let entry = vfs.used_bytes() - before;
    assert!(entry < 1024);
    let file = vfs.open_at("/base", OpenFlags::RDWR).unwrap();
    file.pwrite(b"x", 5000).unwrap();
    assert_eq!(vfs.used_bytes() - before, entry + 4096);
    assert_eq!(file.stat().blocks, 24);
    let mut expected = BASE.to_vec();
    expected[5000] = b'x';
    assert_eq!(vfs.get("/base").unwrap(), expected);
}
