//! Client and server, over a real socket.

use std::{
    os::unix::fs::{FileTypeExt, PermissionsExt},
    sync::Arc,
    time::Duration,
};

use pollux_api::{
    ApiError, BODY_BYTES_MAX, Desired, ErrorKind, EventView, Health, MigrateVm, OperationResult, Phase, ProgressView,
    Runtime, StartVm, StopVm, TakeBack, WAIT_MS_MAX,
    console::{Heard, News, Start},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{UnixListener, UnixStream},
    time::Instant,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    Backend,
    client::{Age, Client},
    fake::{Fake, OPERATION, Served, web},
    server::{self, ServeError},
};

/// Far longer than anything here takes, and shorter than the longest wait.
const LONG: Duration = Duration::from_millis(WAIT_MS_MAX / 2);

/// One request as another program would write it; the whole answer as text.
async fn raw(served: &Served, request: &str) -> String {
    let mut stream = UnixStream::connect(served.socket()).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

#[tokio::test]
async fn a_vm_lives_through_the_api() {
    let served = Served::start().await;
    let client = &served.client;

    let created = client.create_vm(&web()).await.unwrap();
    assert_eq!((created.phase, created.desired, created.memory_mib), (Phase::Stopped, Desired::Running, 256));

    let started = client.start_vm("web", &StartVm { node: Some("n2".into()) }).await.unwrap();
    assert_eq!((started.phase, started.node.as_deref()), (Phase::Running, Some("n2")));
    assert_eq!(client.vms().await.unwrap(), [client.vm("web").await.unwrap()]);

    let stopped = client.stop_vm("web", &StopVm { force: true }).await.unwrap();
    assert_eq!(stopped.phase, Phase::Stopped);

    client.delete_vm("web").await.unwrap();
    assert_eq!(client.vm("web").await.unwrap_err().kind, ErrorKind::NotFound);
}

#[tokio::test]
async fn every_kind_of_error_arrives_as_it_was_sent() {
    let served = Served::start().await;
    for error in [
        ApiError::invalid("vcpus: 65 are too many").todo("at most 64"),
        ApiError::not_found("there is no node n9"),
        ApiError::conflict("VM web runs").todo("stop it first"),
        ApiError::unavailable("there is no leader"),
        ApiError::unknown("sent, no answer"),
        ApiError::internal("out of luck"),
    ] {
        served.fake.change(|held| held.refuse = Some(error.clone()));
        assert_eq!(served.client.create_vm(&web()).await.unwrap_err(), error);
    }
}

#[tokio::test]
async fn a_name_cannot_become_another_path() {
    let served = Served::start().await;
    for name in ["../cluster", "web?wait_ms=1", "a b", "ä", "%2e%2e", ".", ""] {
        let error = served.client.vm(name).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::NotFound, "{name}: {error:?}");
    }
    assert_eq!(served.client.vm("a b").await.unwrap_err().message, "there is no VM a b");
}

#[tokio::test]
async fn bad_requests_are_told_what_is_wrong_with_them() {
    let served = Served::start().await;

    let body = r#"{"name":"web","kernel":"/k","cores":2}"#;
    let answer = raw(
        &served,
        &format!(
            "POST /v1/vms HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        ),
    )
    .await;
    assert!(answer.starts_with("HTTP/1.1 400"), "{answer}");
    assert!(answer.contains("unknown field `cores`"), "{answer}");

    let answer = raw(&served, "GET /v2/vms HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 404") && answer.contains("version 1 of the API"), "{answer}");

    let answer = raw(&served, "DELETE /v1/cluster HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 400") && answer.contains("DELETE does not go with"), "{answer}");

    let answer = raw(&served, "GET /v1/vms/web?wait=5 HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 400") && answer.contains("unknown field `wait`"), "{answer}");
}

#[tokio::test]
async fn a_body_has_a_limit() {
    let served = Served::start().await;
    let mut vm = web();
    vm.append = "x".repeat(BODY_BYTES_MAX);
    let error = served.client.create_vm(&vm).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Invalid, "{error:?}");
    assert!(served.client.vms().await.unwrap().is_empty());
}

#[tokio::test]
async fn a_wait_ends_when_something_changes_and_not_before() {
    let served = Served::start().await;
    let client = &served.client;
    client.create_vm(&web()).await.unwrap();
    let first = client.vm_after("web", None, LONG).await.unwrap();
    assert_eq!(first.view.phase, Phase::Stopped, "whoever has seen nothing is answered at once");

    let quiet = client.vm_after("web", Some(&first), Duration::from_millis(50)).await.unwrap();
    assert_eq!(quiet, first, "nothing changed");

    let begun = Instant::now();
    let (next, ()) = tokio::join!(client.vm_after("web", Some(&first), LONG), async {
        served.fake.somebody_waits().await;
        served.fake.change(|held| held.vms.get_mut("web").unwrap().runtime = Runtime::Starting);
    });
    assert_eq!(next.unwrap().view.runtime, Runtime::Starting);
    assert!(begun.elapsed() < LONG);
}

#[tokio::test]
async fn a_change_that_nobody_announced_is_found_all_the_same() {
    let served = Served::start().await;
    let client = &served.client;
    client.create_vm(&web()).await.unwrap();
    let first = client.vm_after("web", None, LONG).await.unwrap();
    let begun = Instant::now();
    let (next, ()) = tokio::join!(client.vm_after("web", Some(&first), LONG), async {
        served.fake.somebody_waits().await;
        served.fake.held().vms.get_mut("web").unwrap().runtime = Runtime::Starting;
    });
    assert_eq!(next.unwrap().view.runtime, Runtime::Starting);
    assert!(begun.elapsed() < LONG);
}

#[tokio::test]
async fn progress_is_followed_to_the_end() {
    let served = Served::start().await;
    let client = &served.client;
    client.create_vm(&web()).await.unwrap();
    let request = MigrateVm {
        to: "n2".into(),
        blackout_ms_max: 100,
        bandwidth: None,
        allow_throttle: false,
        warm: false,
        storage: pollux_api::Storage::Auto,
        pool: None,
    };
    let begun = client.migrate_vm("web", &request).await.unwrap();
    assert_eq!((begun.id.as_str(), begun.blackout_ms_max), (OPERATION, 100));

    let mut seen = client.operation_after(&OPERATION[..6], None, LONG).await.unwrap();
    for round in 1..=3 {
        let news = ProgressView { phase: "copying".into(), round, mib_per_s: 0.1, ..ProgressView::default() };
        served.fake.change(|held| held.operation.as_mut().unwrap().progress = Some(news.clone()));
        seen = client.operation_after(OPERATION, Some(&seen), LONG).await.unwrap();
        assert_eq!(seen.view.progress, Some(news));
    }
    served.fake.change(|held| held.operation.as_mut().unwrap().result = Some(OperationResult::Succeeded));
    let end = client.operation_after(OPERATION, Some(&seen), LONG).await.unwrap();
    assert_eq!(end.view.result, Some(OperationResult::Succeeded));
}

#[tokio::test]
async fn a_log_is_read_on_from_where_it_was() {
    let served = Served::start().await;
    let client = &served.client;
    client.create_vm(&web()).await.unwrap();
    served.fake.change(|held| held.log = b"booting\xff\n".to_vec());
    let first = client.vm_log("web", 0, Duration::ZERO).await.unwrap();
    assert_eq!((first.bytes.as_slice(), first.next), (b"booting\xff\n".as_slice(), 9), "byte for byte, text or not");

    let (more, ()) = tokio::join!(client.vm_log("web", first.next, LONG), async {
        served.fake.somebody_waits().await;
        served.fake.change(|held| held.log.extend(b"ready\n"));
    });
    assert_eq!(more.unwrap().bytes, b"ready\n");

    served.fake.change(|held| held.log = b"again\n".to_vec());
    let anew = client.vm_log("web", 15, Duration::ZERO).await.unwrap();
    assert_eq!((anew.bytes.as_slice(), anew.next), (b"again\n".as_slice(), 6), "a log that began anew is told whole");
}

#[tokio::test(start_paused = true)]
async fn a_change_without_an_answer_has_an_unknown_outcome() {
    let fake = Fake::new();
    fake.change(|held| held.hang = true);
    let router =
        super::routes::router(Arc::clone(&fake) as Arc<dyn Backend>, CancellationToken::new(), TaskTracker::new());
    let request = axum::http::Request::post("/v1/vms").body(serde_json::to_string(&web()).unwrap().into()).unwrap();

    let answer = tower_call(router, request).await;

    assert_eq!(answer.kind, ErrorKind::Unknown);
    assert!(answer.todo.contains("before asking again"), "{answer:?}");
}

/// One request through the router alone, where paused time stands in for waiting.
async fn tower_call(router: axum::Router, request: axum::http::Request<axum::body::Body>) -> ApiError {
    use hyper::service::Service as _;
    let service = hyper_util::service::TowerToHyperService::new(router);
    let response = service.call(request).await.unwrap();
    serde_json::from_slice(&axum::body::to_bytes(response.into_body(), BODY_BYTES_MAX).await.unwrap()).unwrap()
}

#[tokio::test]
async fn a_daemon_that_dies_with_the_request_leaves_a_change_unknown_and_a_read_undone() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("api.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let client = Client::new(&path);
    let dies = async {
        for _ in 0..2 {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut taken = [0; 64];
            let _ = stream.read(&mut taken).await.unwrap();
        }
    };
    let asks = async {
        let change = client.create_vm(&web()).await.unwrap_err();
        let read = client.vms().await.unwrap_err();
        (change.kind, read.kind)
    };
    let ((), kinds) = tokio::join!(dies, asks);
    assert_eq!(kinds, (ErrorKind::Unknown, ErrorKind::Unavailable));
}

#[tokio::test]
async fn without_a_daemon_the_error_names_the_socket_and_what_to_do() {
    let error = Client::new("/nonexistent/api.sock").cluster().await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Unavailable);
    assert!(error.message.contains("/nonexistent/api.sock"), "{error:?}");
    assert!(error.todo.contains("pollux node run"), "{error:?}");
}

#[tokio::test]
async fn the_socket_is_for_owner_and_group_and_goes_with_the_daemon() {
    let served = Served::start().await;
    let meta = std::fs::symlink_metadata(served.socket()).unwrap();
    assert!(meta.file_type().is_socket());
    assert_eq!(meta.permissions().mode() & 0o777, 0o660);
    assert_eq!(std::fs::read_dir(served.dir()).unwrap().count(), 1, "nothing else is left beside it");

    served.end().await;
    assert!(!served.socket().exists());
}

#[tokio::test]
async fn a_waiting_request_does_not_keep_the_daemon_from_ending() {
    let served = Served::start().await;
    served.client.create_vm(&web()).await.unwrap();
    let first = served.client.vm_after("web", None, LONG).await.unwrap();
    let begun = Instant::now();
    let (answer, ()) = tokio::join!(served.client.vm_after("web", Some(&first), LONG), async {
        served.fake.somebody_waits().await;
        served.end().await;
    });
    assert_eq!(answer.unwrap(), first, "it is answered with what there is");
    assert!(begun.elapsed() < LONG);
}

#[tokio::test]
async fn a_second_daemon_is_refused_and_a_dead_ones_socket_replaced() {
    let served = Served::start().await;
    let serve_at = |path: std::path::PathBuf| {
        let stop = CancellationToken::new();
        stop.cancel();
        async move { server::serve(Fake::new(), &path, stop).await }
    };

    let refused = serve_at(served.socket()).await.unwrap_err();
    assert!(matches!(refused, ServeError::AlreadyServed(_)), "{refused}");
    assert!(served.client.vms().await.is_ok(), "the first still answers");

    let stale = served.dir().join("stale.sock");
    drop(UnixListener::bind(&stale).unwrap());
    assert!(stale.exists(), "a killed daemon leaves its socket");
    serve_at(stale).await.unwrap();

    let file = served.dir().join("file");
    std::fs::write(&file, "precious").unwrap();
    let refused = serve_at(file.clone()).await.unwrap_err();
    assert!(matches!(refused, ServeError::NotASocket(_)), "{refused}");
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "precious");

    let long = served.dir().join("x".repeat(120));
    assert!(matches!(serve_at(long).await.unwrap_err(), ServeError::PathTooLong(_)));
}

#[tokio::test]
async fn taking_back_is_refused_when_something_happened_since() {
    let served = Served::start().await;
    served.client.create_vm(&web()).await.unwrap();
    let request = TakeBack { operator: "me".into(), generation: 7 };
    assert_eq!(served.client.take_back_vm("web", &request).await.unwrap_err().kind, ErrorKind::Conflict);
}

#[test]
fn a_word_of_a_newer_daemon_is_read_as_unknown() {
    assert_eq!(serde_json::from_str::<Runtime>("\"hibernating\"").unwrap(), Runtime::Unknown);
    assert_eq!(serde_json::from_str::<Health>("\"tired\"").unwrap(), Health::Unknown);
    assert_eq!(serde_json::from_str::<ErrorKind>("\"overloaded\"").unwrap(), ErrorKind::Internal);
    assert_eq!(serde_json::to_string(&Runtime::Unknown).unwrap(), "\"unknown\"");
}

#[tokio::test]
async fn events_are_waited_for_from_a_cursor_on() {
    let served = Served::start().await;
    let client = &served.client;
    let happens = |number: u64| {
        let event = EventView { number, at: 0, node: None, vm: None, operation: None, text: "it happens".into() };
        move |held: &mut crate::api::fake::Held| held.events.push(event)
    };
    served.fake.change(happens(7));
    let first = client.events(Some(3), Duration::ZERO).await.unwrap();
    assert_eq!((first.cursor, first.missed, first.events.len()), (7, 3, 1));

    let (next, ()) = tokio::join!(client.events(Some(first.cursor), LONG), async {
        served.fake.somebody_waits().await;
        served.fake.change(happens(8));
    });
    assert_eq!((next.as_ref().unwrap().cursor, next.unwrap().missed), (8, 0));
    let nothing = client.events(Some(8), Duration::ZERO).await.unwrap();
    assert_eq!((nothing.cursor, nothing.events.len()), (8, 0), "the cursor stays where it is");
}

#[tokio::test]
async fn a_console_goes_both_ways_and_ends_with_the_daemon() {
    let served = Served::start().await;
    let refused = served.client.console("web", Start::Last(10)).await.err().unwrap();
    assert_eq!(refused.kind, ErrorKind::NotFound, "a refusal is an ordinary answer: {refused:?}");

    served.client.create_vm(&web()).await.unwrap();
    let mut console = served.client.console("web", Start::Last(10)).await.unwrap();
    let attached = console.hear().await;
    assert_eq!(attached, Some(Heard::News(News::Attached { node: "n1".into(), others: 0 })));
    for (place, typed, said) in [(990, "hello é", "HELLO é"), (998, "again", "AGAIN")] {
        console.type_in(typed.as_bytes()).await.unwrap();
        let heard = console.hear().await;
        assert_eq!(heard, Some(Heard::Output { at: place, bytes: said.as_bytes().to_vec().into() }));
    }

    let begun = Instant::now();
    let (heard, ()) = tokio::join!(console.hear(), served.end());
    assert_eq!(heard, None, "a daemon that ends does not wait for its consoles");
    assert!(begun.elapsed() < LONG);
}

#[tokio::test]
async fn a_console_needs_an_upgrade() {
    let served = Served::start().await;
    served.client.create_vm(&web()).await.unwrap();
    let answer = raw(&served, "GET /v1/vms/web/console HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 400") && answer.contains("Upgrade: pollux-console"), "{answer}");
}

#[tokio::test]
async fn metrics_are_served_as_prometheus_reads_them_and_nothing_else_is_over_tcp() {
    let served = Served::start().await;
    let text = served.client.metrics().await.unwrap();
    assert_eq!(text, "# TYPE pollux_up gauge\npollux_up 1\n");

    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let stop = CancellationToken::new();
    let backend = Arc::clone(&served.fake) as Arc<dyn Backend>;
    let asks = async {
        let ask = async |path: &str| {
            let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
            let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
            stream.write_all(request.as_bytes()).await.unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.unwrap();
            answer
        };
        let answers = [ask("/metrics").await, ask("/v1/vms").await, ask("/v1/vms/web/console").await];
        stop.cancel();
        answers
    };
    let ((), [metrics, vms, console]) = tokio::join!(server::serve_metrics(backend, listener, stop.clone()), asks);
    assert!(metrics.starts_with("HTTP/1.1 200") && metrics.ends_with(&text), "{metrics}");
    assert!(metrics.contains("content-type: text/plain; version=0.0.4"), "{metrics}");
    for answer in [vms, console] {
        assert!(answer.starts_with("HTTP/1.1 404") && answer.contains("only /metrics"), "{answer}");
    }
}

#[tokio::test]
async fn without_a_quorum_a_read_fails_unless_the_client_is_content_with_what_was() {
    let served = Served::start().await;
    served.client.create_vm(&web()).await.unwrap();
    served.fake.change(|held| held.blind = true);

    let refused = served.client.vms().await.unwrap_err();
    assert_eq!(refused.kind, ErrorKind::Unavailable);
    assert_eq!(served.client.vm("web").await.unwrap_err().kind, ErrorKind::Unavailable);

    let stale = served.client.clone().stale();
    assert_eq!(stale.vms().await.unwrap().len(), 1);
    assert_eq!(stale.age(), Some(Age::Ms(14_000)));
    assert_eq!(stale.vm("web").await.unwrap().name, "web");
    served.fake.change(|held| held.blind = false);
    stale.vms().await.unwrap();
    assert_eq!(stale.age(), Some(Age::Unknown), "it says what the node says now");
    assert_eq!(served.client.age(), None);
}
