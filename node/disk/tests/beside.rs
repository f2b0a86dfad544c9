//! What an owner keeps beside a replica's data.

mod world;

use std::{fs, os::unix::fs::FileExt as _};

use pollux_disk::*;
use world::*;

#[test]
fn a_file_beside_the_data_is_written_in_place_or_replaced_and_is_there_again() {
    run(async {
        let place = Place::new();
        place.pool.create_with("v", MIB, &[("log", b"first")]).unwrap();
        let replica = place.pool.open_replica("v", MIB, EngineKind::Threads).await.unwrap();
        let beside = replica.beside();
        let (file, bytes) = beside.read("log", 100).unwrap().unwrap();
        assert_eq!(bytes, b"first");
        assert!(beside.read("other", 100).unwrap().is_none());
        let error = beside.read("log", 4).unwrap_err();
        assert!(error.to_string().contains("more than 4 bytes"), "{error}");

        file.write_all_at(b"F", 0).unwrap();
        assert_eq!(beside.read("log", 100).unwrap().unwrap().1, b"First");
        // A crash while it was being replaced the last time left this.
        fs::write(place.path("v/log.unfinished"), b"half").unwrap();
        beside.replace("log", b"second").unwrap().write_all_at(b"S", 0).unwrap();
        assert_eq!(beside.read("log", 100).unwrap().unwrap().1, b"Second");
        assert!(!place.path("v/log.unfinished").exists());

        drop((replica, beside));
        let replica = place.pool.open_replica("v", MIB, EngineKind::Threads).await.unwrap();
        assert_eq!(replica.beside().read("log", 100).unwrap().unwrap().1, b"Second");
    });
}

#[test]
fn whoever_has_what_is_beside_it_has_the_replica() {
    run(async {
        let place = Place::new();
        let replica = place.replica(MIB, EngineKind::Threads).await;
        let beside = replica.beside();
        drop(replica);
        let busy = place.pool.open_replica("v", MIB, EngineKind::Threads).await.unwrap_err();
        assert!(matches!(busy, OpenError::Busy { .. }), "{busy}");

        beside.mark_failed("its log is damaged").unwrap();
        drop(beside);
        let failed = place.pool.open_replica("v", MIB, EngineKind::Threads).await.unwrap_err();
        assert!(matches!(&failed, OpenError::Failed { reason, .. } if reason == "its log is damaged"), "{failed}");
    });
}

#[test]
fn what_is_no_file_of_its_own_is_not_read() {
    run(async {
        let place = Place::new();
        let replica = place.replica(MIB, EngineKind::Threads).await;
        let beside = replica.beside();
        fs::write(place.path("elsewhere"), b"secret").unwrap();
        std::os::unix::fs::symlink(place.path("elsewhere"), place.path("v/link")).unwrap();
        fs::hard_link(place.path("elsewhere"), place.path("v/second-name")).unwrap();
        for name in ["link", "second-name"] {
            let error = beside.read(name, 100).unwrap_err();
            assert!(!error.to_string().is_empty(), "{name}: {error}");
        }
    });
}
