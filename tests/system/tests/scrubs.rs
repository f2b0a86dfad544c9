//! A disk under one replica makes something else of what it was given, and nobody asks: the background scrub finds it and tells.

use std::net::Ipv4Addr;

use pollux_system_tests::{
    World,
    cli::exit,
    disks::{Compared, Verification, Volume},
    waiting::{SETTLE, until},
};

const WRITE_ONCE: &str = "dd if=/dev/urandom of=/dev/vda bs=1M seek=8 count=2 conv=fsync";
const ROT_AT: u64 = 9 << 20;

/// What was found last, once it is this.
fn found(world: &World, what: &str, is_it: impl Fn(&Compared) -> bool) -> Compared {
    until(what, SETTLE, || {
        let seen: Volume = world.pollux("n3", &["volume", "show", "data"]).try_json()?;
        let compared = seen.compared.clone().filter(|compared| compared.by == "scrub" && is_it(compared));
        compared.ok_or_else(|| format!("{seen:?}"))
    })
}

#[test]
fn long_a_scrub_finds_by_itself_what_a_disk_made_of_a_replica_and_repairs_nothing() {
    let world = World::start(3);
    world.have_pools();
    world.make_volume("data", "16M", &["n1", "n2"]);
    world.run_with("n1", &["--scrub-every", "1s", "--scrub-rate", "64MB"]);
    let guest = world.create("web", "n1", Ipv4Addr::new(10, 78, 0, 10), &["--volume", "data"]);
    guest.boot();
    let wrote = guest.run(WRITE_ONCE, SETTLE);
    assert_eq!(wrote.code, 0, "{wrote:?}");
    let equal = found(&world, "a scrub to be over", |compared| compared.whole);
    assert!(equal.differs.is_empty() && equal.left_out_bytes == 0, "{equal:?}");

    world.rots("n1", "data", ("n2", ROT_AT));
    let differs = found(&world, "a scrub to find it", |compared| !compared.differs.is_empty()).differs;
    assert!(differs.len() == 1 && differs[0].place == "n2:fast", "{differs:?}");
    assert!(differs[0].bytes > 0 && differs[0].first <= ROT_AT, "{differs:?}");
    until("the cluster to say so", SETTLE, || {
        let told = world.cluster("n3").problems;
        let named = told.iter().any(|it| it.what.contains("volume data") && it.what.contains("n2:fast"));
        if named { Ok(()) } else { Err(format!("{told:?}")) }
    });

    // A person has to say what is right.
    let still: Verification = world.pollux("n3", &["volume", "verify", "data"]).code(exit::DIFFERS).value();
    assert_eq!(still.result, "different");
    let _: Verification = world.pollux("n3", &["volume", "verify", "data", "--repair"]).code(exit::OK).value();
    let equal = found(&world, "a scrub to find them equal again", |compared| compared.whole);
    assert!(equal.differs.is_empty(), "{equal:?}");
}
