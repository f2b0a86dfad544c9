//! Verbs from the command line to the daemon's answer, over a real socket, with their exit codes.

mod storage;

use std::time::Duration;

use clap::{CommandFactory, Parser, error::ErrorKind as ClapErrorKind};
use pollux_api::{ApiError, OperationResult, Phase, ProgressView, ReportView, Runtime, StartVm};

use super::{Cli, Exit, Failure, dispatch, follow};
use crate::api::fake::{OPERATION, Served, web};

/// What `pollux` does when it is called like this.
async fn pollux(served: &Served, words: &str) -> Result<(), Failure> {
    let socket = served.socket().to_str().unwrap().to_owned();
    let words = ["pollux", "--socket", &socket].into_iter().chain(words.split_whitespace());
    dispatch(Cli::try_parse_from(words).unwrap()).await
}

/// A daemon with one VM, `web`, that runs on n1.
async fn with_web() -> Served {
    let served = Served::start().await;
    served.client.create_vm(&web()).await.unwrap();
    served.client.start_vm("web", &StartVm::default()).await.unwrap();
    served
}

/// How the operation ends, as soon as somebody waits for it.
async fn ends(served: &Served, result: OperationResult, reason: Option<&str>) {
    while served.fake.held().operation.is_none() {
        tokio::task::yield_now().await;
    }
    served.fake.somebody_waits().await;
    served.fake.change(|held| {
        let operation = held.operation.as_mut().unwrap();
        operation.result = Some(result);
        operation.reason = reason.map(str::to_owned);
        operation.progress = Some(ProgressView { phase: "arriving".into(), ..ProgressView::default() });
        operation.report = (result == OperationResult::Succeeded).then(|| ReportView {
            rounds: 3,
            pause_ms: 41,
            wire_bytes: 120 << 20,
            total_ms: 2100,
            ..ReportView::default()
        });
    });
}

#[test]
fn the_command_line_is_consistent_and_helps() {
    Cli::command().debug_assert();
    let help = Cli::try_parse_from(["pollux", "help", "exit-codes"]).unwrap_err();
    assert_eq!(help.kind(), ClapErrorKind::DisplayHelp);
    assert!(help.to_string().contains("130  interrupted"), "{help}");
    let help = Cli::try_parse_from(["pollux", "--help"]).unwrap_err().to_string();
    for word in ["cluster init", "node join", "vm migrate", "POLLUX_SOCKET", "exit-codes"] {
        assert!(help.contains(word), "{word} is not in {help}");
    }
}

#[test]
fn what_cannot_be_meant_is_refused_before_anybody_is_asked() {
    for words in [
        "vm create web",
        "vm create web --kernel /k --memory lots",
        "vm create web --kernel /k --nic br0,model=e1000",
        "vm create web --kernel /k --no-start --wait",
        "vm migrate web",
        "vm migrate web --to n2 --max-blackout 300",
        "vm takeback web",
        "vm stop web --timeout soon",
        "cluster init --name n1 --listen here",
        "cluster token",
        "node list -o xml",
    ] {
        let error = Cli::try_parse_from(["pollux"].into_iter().chain(words.split_whitespace())).unwrap_err();
        assert_eq!(error.exit_code(), i32::from(Exit::Usage.code()), "{words}: {error}");
    }
}

#[tokio::test]
async fn a_typo_gets_a_suggestion() {
    let served = with_web().await;
    for words in [
        "vm show wbe",
        "vm why wbe",
        "vm start wbe",
        "vm stop wbe",
        "vm log wbe",
        "vm migrate wbe --to n2",
        "vm delete wbe",
    ] {
        let failure = pollux(&served, words).await.unwrap_err();
        assert_eq!(failure.exit, Exit::NotFound, "{words}");
        assert_eq!(failure.todo, "did you mean web? `pollux vm list` shows all", "{words}");
    }
}

#[tokio::test]
async fn a_node_that_does_not_exist_is_not_blamed_on_the_vm() {
    let served = with_web().await;
    served.fake.change(|held| held.refuse = Some(ApiError::not_found("there is no node called n9")));
    let failure = pollux(&served, "vm migrate web --to n9").await.unwrap_err();
    assert_eq!((failure.exit, failure.todo.as_str()), (Exit::NotFound, "`pollux node list` shows those there are"));
}

#[tokio::test]
async fn a_refusal_ends_with_its_own_code() {
    let served = with_web().await;
    for (error, exit) in [
        (ApiError::conflict("VM web is moving"), Exit::Conflict),
        (ApiError::unavailable("there is no leader"), Exit::Unavailable),
        (ApiError::unknown("may or may not have happened"), Exit::Unknown),
        (ApiError::invalid("vcpus: 65 are too many"), Exit::Usage),
    ] {
        served.fake.change(|held| held.refuse = Some(error.clone()));
        let failure = pollux(&served, "vm migrate web --to n2").await.unwrap_err();
        assert_eq!((failure.exit, failure.message), (exit, error.message));
    }
}

#[tokio::test]
async fn without_a_daemon_every_verb_that_needs_one_says_so() {
    let served = Served::start().await;
    served.end().await;
    for words in [
        "cluster status",
        "node list",
        "vm list",
        "pool list",
        "volume list",
        "op list",
        "vm show web",
        "cluster token --node n2",
    ] {
        let failure = pollux(&served, words).await.unwrap_err();
        assert_eq!(failure.exit, Exit::Unavailable, "{words}");
        assert!(failure.todo.contains("pollux node run"), "{words}: {failure:?}");
    }
}

#[tokio::test]
async fn stop_waits_until_the_vm_is_stopped() {
    let served = with_web().await;
    served.fake.change(|held| held.deaf = true);
    let (stopped, ()) = tokio::join!(pollux(&served, "vm stop web"), async {
        served.fake.somebody_waits().await;
        served.fake.change(|held| held.vms.get_mut("web").unwrap().phase = Phase::Stopped);
    });
    stopped.unwrap();
}

#[tokio::test]
async fn a_guest_that_does_not_stop_in_time_is_told_with_what_to_do() {
    let served = with_web().await;
    served.fake.change(|held| held.deaf = true);

    let failure = pollux(&served, "vm stop web --timeout 50ms").await.unwrap_err();
    assert_eq!(failure.exit, Exit::TimedOut);
    assert!(failure.message.contains("VM web still runs on n1"), "{failure}");
    assert!(failure.todo.contains("--force"), "{failure:?}");

    pollux(&served, "vm stop web --force").await.unwrap();
}

#[tokio::test]
async fn a_guest_that_waits_for_its_disk_cannot_stop_and_is_told_with_what_to_do() {
    let served = with_web().await;
    served.fake.change(|held| {
        held.deaf = true;
        held.vms.get_mut("web").unwrap().trouble = Some("volume data: the pool is full".into());
    });

    let failure = pollux(&served, "vm stop web --timeout 50ms").await.unwrap_err();
    assert_eq!(failure.exit, Exit::TimedOut);
    let told = ["VM web stands still on n1 (volume data: the pool is full)", "cannot stop before it has written"];
    assert!(told.iter().all(|words| failure.message.contains(words)), "{failure}");
    let todo = ["make room", "then it stops by itself", "pollux vm stop web --force", "is lost"];
    assert!(todo.iter().all(|words| failure.todo.contains(words)), "{failure:?}");

    pollux(&served, "vm stop web --force").await.unwrap();
}

#[tokio::test]
async fn stop_gives_up_when_somebody_starts_the_vm_again() {
    let served = with_web().await;
    served.fake.change(|held| held.deaf = true);
    let (failure, ()) = tokio::join!(pollux(&served, "vm stop web"), async {
        served.fake.somebody_waits().await;
        served.client.start_vm("web", &StartVm::default()).await.unwrap();
    });
    assert_eq!(failure.unwrap_err().exit, Exit::Conflict);
}

#[tokio::test]
async fn create_can_wait_until_the_guest_runs() {
    let served = Served::start().await;
    let words = "vm create web --kernel /boot/vmlinuz --nic br0 --wait";
    let (created, ()) = tokio::join!(pollux(&served, words), async {
        served.fake.somebody_waits().await;
        served.fake.change(|held| {
            let vm = held.vms.get_mut("web").unwrap();
            (vm.phase, vm.runtime) = (Phase::Running, Runtime::Starting);
        });
        served.fake.somebody_waits().await;
        served.fake.change(|held| held.vms.get_mut("web").unwrap().runtime = Runtime::Running);
    });
    created.unwrap();
}

#[tokio::test]
async fn create_that_waits_tells_why_the_guest_does_not_run() {
    let served = Served::start().await;
    let words = "vm create web --kernel /boot/none --wait";
    let (created, ()) = tokio::join!(pollux(&served, words), async {
        served.fake.somebody_waits().await;
        served.fake.change(|held| {
            let vm = held.vms.get_mut("web").unwrap();
            vm.failed_starts = 1;
            vm.stop_cause = Some("no kernel at /boot/none".into());
        });
    });
    let failure = created.unwrap_err();
    assert_eq!(failure.exit, Exit::Failed);
    assert!(failure.message.contains("no kernel at /boot/none"), "{failure}");
}

#[tokio::test]
async fn a_move_is_followed_and_its_end_is_the_exit_code() {
    for (result, reason, exit) in [
        (OperationResult::Succeeded, None, None),
        (OperationResult::Failed, Some("the guest dirties 900 MiB/s, the link carries 400"), Some(Exit::Failed)),
        (OperationResult::Cancelled, None, Some(Exit::Cancelled)),
    ] {
        let served = with_web().await;
        let (moved, ()) = tokio::join!(pollux(&served, "vm migrate web --to n2"), ends(&served, result, reason));
        assert_eq!(moved.as_ref().err().map(|failure| failure.exit), exit);
        if let (Err(failure), Some(reason)) = (moved, reason) {
            assert!(failure.message.contains(reason), "{failure}");
        }
    }
}

#[tokio::test]
async fn a_detached_move_is_not_waited_for() {
    let served = with_web().await;
    tokio::time::timeout(Duration::from_secs(10), pollux(&served, "vm migrate web --to n2 --detach"))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(served.fake.held().operation.as_ref().unwrap().result, None);
    pollux(&served, "op list").await.unwrap();
    pollux(&served, "op show 0123").await.unwrap();

    pollux(&served, "op cancel 0123").await.unwrap();
    assert_eq!(pollux(&served, "op watch 0123").await.unwrap_err().exit, Exit::Cancelled);
    assert_eq!(pollux(&served, "op show 4567").await.unwrap_err().exit, Exit::NotFound);
}

#[tokio::test]
async fn the_json_of_a_move_has_what_scripts_read() {
    let served = with_web().await;
    let (moved, ()) = tokio::join!(
        pollux(&served, "-o json vm migrate web --to n2"),
        ends(&served, OperationResult::Succeeded, None)
    );
    moved.unwrap();
    let end = served.client.operation(OPERATION).await.unwrap();
    insta::assert_snapshot!(follow::summary(&end), @r#"
    {"operation":"0123456789abcdef0123456789abcdef","report":{"pages":0,"parts":{"commit_us":0,"load_us":0,"pages_us":0,"resume_us":0,"save_us":0,"stop_us":0},"pause_ms":41,"rounds":3,"silence_ms":null,"throttle_percent":0,"total_ms":2100,"wire_bytes":125829120,"zero_pages":0},"result":"succeeded"}
    "#);
}

#[tokio::test]
async fn only_a_vm_on_its_way_can_be_taken_back() {
    let served = with_web().await;
    let failure = pollux(&served, "vm takeback web --operator me --yes").await.unwrap_err();
    assert_eq!(failure.exit, Exit::Conflict);

    served.fake.change(|held| {
        let vm = held.vms.get_mut("web").unwrap();
        (vm.phase, vm.node, vm.peer) = (Phase::Arriving, Some("n2".into()), Some("n1".into()));
    });
    pollux(&served, "vm takeback web --operator me --yes").await.unwrap();
    assert_eq!(served.client.vm("web").await.unwrap().node.as_deref(), Some("n1"));
}
