//! The fault table: places in a move x faults. A few cells of each fault run always; `deploy/test --all` plays every cell.

use pollux_system_tests::faults::{Fault, Place, Table};

/// Every fault once, and every place at least once: fault number `n` at place number `3 n`.
fn diagonal() -> Vec<(Place, Fault)> {
    let places = Place::ALL;
    Fault::QUICK.into_iter().enumerate().map(|(number, fault)| (places[number * 3 % places.len()], fault)).collect()
}

fn play(cells: impl IntoIterator<Item = (Place, Fault)>) {
    let mut table = Table::lay();
    for (place, fault) in cells {
        table.play(place, fault);
    }
}

#[test]
fn long_every_fault_somewhere_first_half() {
    let cells = diagonal();
    play(cells[..cells.len() / 2].iter().copied());
}

#[test]
fn long_every_fault_somewhere_second_half() {
    let cells = diagonal();
    play(cells[cells.len() / 2..].iter().copied());
}

/// The whole row of one fault.
macro_rules! row {
    ($($name:ident: $fault:ident),* $(,)?) => {
        $(
            #[test]
            #[ignore = "part of the whole table: deploy/test --all"]
            fn $name() {
                play(Place::ALL.map(|place| (place, Fault::$fault)));
            }
        )*
    };
}

row! {
    table_source_daemon: SourceDaemon,
    table_source_qemu: SourceQemu,
    table_target_daemon: TargetDaemon,
    table_target_qemu: TargetQemu,
    table_target_reboots: TargetReboots,
    table_leader: Leader,
    table_link_there: LinkThere,
    table_link_back: LinkBack,
    table_link: Link,
    table_source_and_leader: SourceAndLeader,
    table_target_and_leader: TargetAndLeader,
    table_source_alone: SourceAlone,
    table_target_alone: TargetAlone,
    table_source_sleeps: SourceSleeps,
    table_target_sleeps: TargetSleeps,
    table_cancel: Cancel,
    table_everything: Everything,
}
