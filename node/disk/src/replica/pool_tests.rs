use std::{
    fs,
    panic::{AssertUnwindSafe, catch_unwind},
};

use super::*;

const SIZE: u64 = 1 << 20;
const STEPS: [Step; 7] =
    [Step::Directory, Step::File, Step::Sized, Step::FileSynced, Step::Beside, Step::DirectorySynced, Step::Named];
const BESIDE: &[(&str, &[u8])] = &[("log", b"what belongs to it")];

/// Makes a replica, and stops dead after `last`.
fn crash_after(pool: &Pool, last: Step) {
    let crashed = catch_unwind(AssertUnwindSafe(|| {
        pool.create_by_steps("v", SIZE, BESIDE, |step| {
            if step == last {
                std::panic::resume_unwind(Box::new(()))
            }
        })
    }));
    assert!(crashed.is_err(), "there is no step {last:?}");
}

fn names(pool: &Pool) -> Vec<String> {
    pool.list().unwrap().into_iter().map(|found| found.name).collect()
}

#[test]
fn a_crash_at_any_step_leaves_all_of_a_replica_or_nothing_that_counts() {
    for last in STEPS {
        let directory = tempfile::tempdir().unwrap();
        let pool = Pool::open(directory.path()).unwrap();
        crash_after(&pool, last);

        let there = names(&pool);
        let expected: &[&str] = if last == Step::Named { &["v"] } else { &[] };
        assert_eq!(there, expected, "after {last:?}");
        assert_eq!(pool.sweep().unwrap(), usize::from(last != Step::Named));
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), there.len(), "the rest is swept away");
        if let [name] = &there[..] {
            assert_eq!(fs::read(directory.path().join(name).join("log")).unwrap(), BESIDE[0].1);
        }
    }
}

#[test]
fn a_name_whose_making_crashed_can_be_used_again() {
    for last in STEPS.into_iter().filter(|step| *step != Step::Named) {
        let directory = tempfile::tempdir().unwrap();
        let pool = Pool::open(directory.path()).unwrap();
        crash_after(&pool, last);

        pool.create("v", 2 * SIZE).unwrap();

        assert_eq!(fs::metadata(directory.path().join("v/data")).unwrap().len(), 2 * SIZE);
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }
}

#[test]
fn the_name_is_given_last_when_everything_is_on_stable_storage() {
    let directory = tempfile::tempdir().unwrap();
    let pool = Pool::open(directory.path()).unwrap();
    let mut steps = Vec::new();
    pool.create_by_steps("v", SIZE, BESIDE, |step| {
        assert_eq!(directory.path().join("v").exists(), step == Step::Named);
        steps.push(step);
    })
    .unwrap();
    assert_eq!(steps, STEPS);
}

#[test]
fn one_half_removed_is_gone_and_is_swept_away() {
    let directory = tempfile::tempdir().unwrap();
    let pool = Pool::open(directory.path()).unwrap();
    pool.create("v", SIZE).unwrap();
    fs::rename(directory.path().join("v"), directory.path().join(".gone.v")).unwrap();

    assert_eq!(names(&pool), [""; 0]);
    pool.create("v", SIZE).unwrap();
    pool.delete("v").unwrap();
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
}
