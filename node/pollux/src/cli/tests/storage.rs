//! Pools and volumes: from the command line to the daemon's answer.

use pollux_api::{ApiError, ReplicaState, VerificationResult, VolumeHealth};

use super::*;

/// A daemon with two pools and a volume, `data`, in both of them.
async fn with_data() -> Served {
    let served = with_web().await;
    for words in ["pool add n1:fast /srv/fast", "pool add n2:fast /srv/fast"] {
        pollux(&served, words).await.unwrap();
    }
    pollux(&served, "volume create data --size 10G --pool n1:fast --pool n2:fast").await.unwrap();
    served
}

#[tokio::test]
async fn pools_and_volumes_come_grow_and_go() {
    let served = with_data().await;
    let data = served.client.volume("data").await.unwrap();
    assert_eq!((data.size_bytes, data.replicas.len(), data.health), (10 << 30, 2, VolumeHealth::Ready));

    pollux(&served, "volume grow data --size 20G").await.unwrap();
    pollux(&served, "volume attach data --vm web --boot").await.unwrap();
    let data = served.client.volume("data").await.unwrap();
    assert_eq!((data.size_bytes, data.vm.as_deref()), (20 << 30, Some("web")));
    for words in ["volume list", "volume show data", "pool list", "-o json volume show data", "-o yaml pool list"] {
        pollux(&served, words).await.unwrap();
    }

    let failure = pollux(&served, "volume delete data --yes").await.unwrap_err();
    assert_eq!(failure.exit, Exit::Conflict);
    assert!(failure.todo.contains("volume detach data"), "{failure:?}");
    pollux(&served, "volume detach data").await.unwrap();
    let failure = pollux(&served, "pool remove n1:fast").await.unwrap_err();
    assert_eq!(failure.exit, Exit::Conflict, "a replica is in it");

    pollux(&served, "volume replica add data n3:slow").await.unwrap();
    pollux(&served, "volume replica remove data n3:slow").await.unwrap();
    pollux(&served, "volume delete data --yes").await.unwrap();
    pollux(&served, "pool remove n1:fast").await.unwrap();
    assert_eq!(served.client.pools().await.unwrap().len(), 1);
}

#[tokio::test]
async fn an_import_is_followed_to_its_end() {
    for (error, exit) in [(None, None), (Some("it names a backing file"), Some(Exit::Failed))] {
        let served = with_data().await;
        let words = "volume import root --from /srv/root.qcow2 --pool n1:fast";
        let (imported, ()) = tokio::join!(pollux(&served, words), async {
            served.fake.somebody_waits().await;
            served.fake.change(|held| {
                let transfer = held.transfer.as_mut().unwrap();
                transfer.phase = "ended".into();
                transfer.error = error.map(ApiError::invalid);
            });
        });
        assert_eq!(imported.as_ref().err().map(|failure| failure.exit), exit);
        if let (Err(failure), Some(error)) = (imported, error) {
            assert!(failure.message.contains(error) && failure.message.contains("is not there"), "{failure}");
        }
    }
    let served = with_data().await;
    pollux(&served, "volume export data --to /srv/data.raw --detach").await.unwrap();
}

#[tokio::test]
async fn a_comparison_is_followed_to_its_end_and_its_exit_code_says_what_came_of_it() {
    for (result, error, exit) in [
        (Some(VerificationResult::Equal), None, None),
        (Some(VerificationResult::Different), None, Some(Exit::Differs)),
        (Some(VerificationResult::Incomplete), None, Some(Exit::Failed)),
        (None, Some("the right to write has gone over to n2"), Some(Exit::Failed)),
    ] {
        let served = with_data().await;
        let (verified, ()) = tokio::join!(pollux(&served, "volume verify data --repair -o json"), async {
            served.fake.somebody_waits().await;
            served.fake.change(|held| {
                let view = held.verification.as_mut().unwrap();
                assert!(view.repair);
                view.replicas[1].differs_bytes = u64::from(result == Some(VerificationResult::Different)) * 4096;
                (view.phase, view.ended, view.result) = ("ended".into(), Some(1), result);
                view.error = error.map(ApiError::conflict);
            });
        });
        assert_eq!(verified.as_ref().err().map(|failure| failure.exit), exit, "{verified:?}");
        if let (Err(failure), Some(error)) = (verified, error) {
            assert!(failure.message.contains(error) && failure.message.contains("were not compared"), "{failure}");
        }
    }
    let served = with_data().await;
    pollux(&served, "volume verify data --detach").await.unwrap();
    assert!(served.fake.held().verification.as_ref().is_some_and(|it| it.ended.is_none()), "nobody waited for its end");
    served.fake.change(|held| held.refuse = Some(ApiError::conflict("the move of volume data is comparing")));
    assert_eq!(pollux(&served, "volume verify data").await.unwrap_err().exit, Exit::Conflict);
}

#[tokio::test]
async fn a_move_says_how_fast_it_may_copy_in_the_words_of_a_vms_move() {
    let served = with_data().await;
    for (words, bandwidth) in
        [("", None), (" --bandwidth 1Gbit", Some(125_000_000)), (" --bandwidth 100MB", Some(100_000_000))]
    {
        let move_it = format!("volume move data --from n1:fast --to n3:fast --detach{words}");
        pollux(&served, &move_it).await.unwrap();
        let begun = served.fake.held().operation.as_ref().map(|operation| operation.bandwidth);
        assert_eq!(begun, Some(bandwidth), "{words}");
    }
}

#[tokio::test]
async fn nobody_deletes_a_volume_by_mistake() {
    let served = with_data().await;
    let failure = pollux(&served, "volume delete data").await.unwrap_err();
    assert_eq!(failure.exit, Exit::Usage, "there is no terminal to type its name on");
    assert!(served.client.volume("data").await.is_ok());
}

#[tokio::test]
async fn create_waits_until_every_replica_is_made() {
    let served = with_data().await;
    served.fake.change(|held| held.deaf = true);
    let (made, ()) = tokio::join!(pollux(&served, "volume create root --size 1G --pool n1:fast"), async {
        served.fake.somebody_waits().await;
        served.fake.change(|held| held.volumes.get_mut("root").unwrap().replicas[0].state = ReplicaState::Insync);
    });
    made.unwrap();

    let failure = pollux(&served, "volume create slow --size 1G --pool n1:fast --timeout 50ms").await.unwrap_err();
    assert_eq!(failure.exit, Exit::TimedOut);
    assert!(failure.message.contains("not yet made in n1:fast"), "{failure}");
    pollux(&served, "volume create later --size 1G --pool n1:fast --detach").await.unwrap();
}

#[tokio::test]
async fn a_replica_that_cannot_be_made_is_told_with_why() {
    let served = with_data().await;
    served.fake.change(|held| held.deaf = true);
    let (made, ()) = tokio::join!(pollux(&served, "volume create root --size 1G --pool n1:fast"), async {
        served.fake.somebody_waits().await;
        served.fake.change(|held| {
            let replica = &mut held.volumes.get_mut("root").unwrap().replicas[0];
            (replica.state, replica.why) = (ReplicaState::Failed, Some("the pool is read-only".into()));
        });
    });
    let failure = made.unwrap_err();
    assert_eq!(failure.exit, Exit::Failed);
    assert!(failure.message.contains("n1:fast") && failure.message.contains("read-only"), "{failure}");
}

#[tokio::test]
async fn a_typo_gets_a_suggestion() {
    let served = with_data().await;
    for (words, advice) in [
        ("volume show daat", "did you mean data? `pollux volume list` shows all"),
        ("volume grow daat --size 20G", "did you mean data? `pollux volume list` shows all"),
        ("volume detach daat", "did you mean data? `pollux volume list` shows all"),
        ("volume verify daat", "did you mean data? `pollux volume list` shows all"),
        ("volume delete daat", "did you mean data? `pollux volume list` shows all"),
        ("volume replica remove daat n1:fast", "did you mean data? `pollux volume list` shows all"),
        ("volume create x --size 1G --pool n1:fsat", "did you mean n1:fast? `pollux pool list` shows all"),
        ("pool remove n1:fsat", "did you mean n1:fast? `pollux pool list` shows all"),
    ] {
        let failure = pollux(&served, words).await.unwrap_err();
        assert_eq!((failure.exit, failure.todo.as_str()), (Exit::NotFound, advice), "{words}");
    }
}

#[tokio::test]
async fn a_name_that_does_not_exist_is_the_one_that_is_blamed() {
    let served = with_data().await;
    served.fake.change(|held| held.refuse = Some(ApiError::not_found("there is no VM called wbe")));
    let failure = pollux(&served, "volume attach data --vm wbe").await.unwrap_err();
    assert_eq!((failure.exit, failure.todo.as_str()), (Exit::NotFound, "did you mean web? `pollux vm list` shows all"));
}

#[test]
fn what_cannot_be_meant_is_refused_before_anybody_is_asked() {
    for words in [
        "pool add fast",
        "volume create data --pool n1:fast",
        "volume create data --size 10 --pool n1:fast",
        "volume create data --size 10G",
        "volume attach data",
        "volume replica add data",
        "volume import data --from /srv/x",
        "volume import data --from /srv/x --pool n1:fast --format vdi",
        "volume export data",
        "volume move data --to n3:fast --bandwidth 100",
    ] {
        let error = Cli::try_parse_from(["pollux"].into_iter().chain(words.split_whitespace())).unwrap_err();
        assert_eq!(error.exit_code(), i32::from(Exit::Usage.code()), "{words}: {error}");
    }
}
