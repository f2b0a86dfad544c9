//! The client against a QEMU played by the test, which may misbehave as no real one does.

use std::{io, os::fd::AsFd};

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};

use super::*;

const SOON: Duration = Duration::from_millis(20);
const LONG: Duration = Duration::from_secs(10);

/// The other end: reads commands, says whatever a test wants.
struct Fake {
    lines: BufReader<tokio::net::UnixStream>,
}

impl Fake {
    async fn say(&mut self, text: &str) {
        // A client that hung up is a test's expectation, not a failure.
        let _ = self.lines.get_mut().write_all(text.as_bytes()).await;
    }

    /// The next command: its number and its name.
    async fn heard(&mut self) -> Option<(u64, String)> {
        let mut line = String::new();
        self.lines.read_line(&mut line).await.ok().filter(|length| *length > 0)?;
        let command: Value = serde_json::from_str(&line).unwrap();
        Some((command["id"].as_u64().unwrap(), command["execute"].as_str().unwrap().to_owned()))
    }

    async fn answer(&mut self, id: u64) {
        self.say(&format!("{{\"return\": {{\"number\": {id}}}, \"id\": {id}}}\r\n")).await;
    }
}

/// A negotiated client and its counterpart.
async fn pair() -> (Qmp, Fake, TaskTracker) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    theirs.set_nonblocking(true).unwrap();
    let mut fake = Fake { lines: BufReader::new(tokio::net::UnixStream::from_std(theirs).unwrap()) };
    let tasks = TaskTracker::new();
    let greet = async {
        fake.say("{\"QMP\": {\"version\": {}, \"capabilities\": [\"oob\"]}}\r\n").await;
        let (id, name) = fake.heard().await.unwrap();
        assert_eq!(name, "qmp_capabilities");
        fake.answer(id).await;
    };
    let (qmp, ()) = tokio::join!(Qmp::connect(ours, &tasks), greet);
    (qmp.unwrap(), fake, tasks)
}

#[tokio::test]
async fn replies_find_their_commands_in_any_order() {
    let (qmp, mut fake, _tasks) = pair().await;
    let mut first = qmp.begin("one", json!({}), None).unwrap();
    let mut second = qmp.begin("two", json!({}), None).unwrap();
    let (one, _) = fake.heard().await.unwrap();
    let (two, _) = fake.heard().await.unwrap();
    fake.answer(two).await;
    fake.say(&format!("{{\"error\": {{\"class\": \"GenericError\", \"desc\": \"no\"}}, \"id\": {one}}}\n")).await;

    assert_eq!(second.wait(LONG).await.unwrap()["number"], two);
    let refused = first.wait(LONG).await;
    assert!(matches!(refused, Err(QmpError::Rejected { description, .. }) if description == "no"));
}

#[tokio::test]
async fn a_slow_reply_is_not_a_failure() {
    let (qmp, mut fake, _tasks) = pair().await;
    let mut stop = qmp.begin("stop", json!({}), None).unwrap();
    let forgotten = qmp.execute("cont", json!({}), SOON).await;
    assert!(matches!(forgotten, Err(QmpError::Slow { .. })));
    assert!(matches!(stop.wait(SOON).await, Err(QmpError::Slow { .. })));

    for _ in 0..2 {
        let (id, _) = fake.heard().await.unwrap();
        fake.answer(id).await;
    }
    assert!(stop.wait(LONG).await.is_ok(), "it can still be waited for");
    let mut next = qmp.begin("query-status", json!({}), None).unwrap();
    let (id, _) = fake.heard().await.unwrap();
    fake.answer(id).await;
    assert_eq!(next.wait(LONG).await.unwrap()["number"], id, "a late reply is nobody else's");
    assert_eq!(qmp.late_replies(), 1);
}

#[tokio::test]
async fn too_many_commands_without_a_reply_are_refused() {
    let (qmp, mut fake, _tasks) = pair().await;
    let pending: Vec<_> = (0..OUTSTANDING_MAX).map(|_| qmp.begin("stop", json!({}), None).unwrap()).collect();
    assert!(matches!(qmp.begin("stop", json!({}), None), Err(QmpError::Busy { .. })));

    drop(pending);
    let (id, _) = fake.heard().await.unwrap();
    fake.answer(id).await;
    while qmp.late_replies() == 0 {
        tokio::task::yield_now().await;
    }
    qmp.begin("stop", json!({}), None).expect("a reply makes room");
}

#[tokio::test]
async fn what_is_not_qmp_ends_the_connection_and_every_wait() {
    let long = format!("\"{}", "x".repeat(3 << 20));
    let unasked = "{\"return\": {}, \"id\": 4711}\n";
    for (said, reason) in [("\u{0}\u{1}\n", "not QMP"), (long.as_str(), "longer than"), (unasked, "never sent")] {
        let (qmp, mut fake, tasks) = pair().await;
        let mut waiting = qmp.begin("stop", json!({}), None).unwrap();
        let (waited, ()) = tokio::join!(waiting.wait(LONG), fake.say(said));
        match waited {
            Err(QmpError::Closed { reason: told, .. }) => assert!(told.contains(reason), "{told}"),
            other => panic!("{reason}: {other:?}"),
        }
        assert_eq!(qmp.next_event().await, None);
        tasks.close();
        tokio::time::timeout(LONG, tasks.wait()).await.expect("both tasks end by themselves");
        assert!(matches!(qmp.begin("cont", json!({}), None).map(drop), Err(QmpError::Closed { .. }) | Ok(())));
        assert!(matches!(qmp.execute("cont", json!({}), LONG).await, Err(QmpError::Closed { .. })));
    }
}

#[tokio::test]
async fn the_end_of_qemu_ends_every_wait_but_loses_no_event() {
    let (qmp, mut fake, _tasks) = pair().await;
    fake.say("{\"event\": \"FROM_THE_FUTURE\", \"data\": {\"x\": 1}}\n{\"event\": \"SHUTDOWN\"}\n").await;
    drop(fake);
    assert!(matches!(qmp.execute("stop", json!({}), LONG).await, Err(QmpError::Closed { .. })));
    assert_eq!(qmp.next_event().await.unwrap().name, "FROM_THE_FUTURE");
    assert_eq!(qmp.next_event().await.unwrap().name, "SHUTDOWN");
    assert_eq!(qmp.next_event().await, None);
}

#[tokio::test]
async fn lines_may_come_in_pieces_and_several_at_once() {
    let (qmp, mut fake, _tasks) = pair().await;
    for piece in ["{\"event\": ", "\"A\"}\n{\"event\":\"B\"}", "\n{\"ev", "ent\":\"C\"}\n"] {
        fake.say(piece).await;
        tokio::task::yield_now().await;
    }
    for name in ["A", "B", "C"] {
        assert_eq!(qmp.next_event().await.unwrap().name, name);
    }
}

#[tokio::test]
async fn a_descriptor_travels_with_its_command() {
    use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
    let (qmp, fake, _tasks) = pair().await;
    let (reading, writing) = rustix::pipe::pipe().unwrap();
    qmp.begin("getfd", json!({ "fdname": "x" }), Some(writing)).unwrap();

    let socket = fake.lines.into_inner();
    let taken = loop {
        socket.readable().await.unwrap();
        let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut line = [0; 256];
        let received = socket.try_io(tokio::io::Interest::READABLE, || {
            let buffers = &mut [io::IoSliceMut::new(&mut line)];
            Ok(recvmsg(socket.as_fd(), buffers, &mut control, RecvFlags::CMSG_CLOEXEC)?)
        });
        if received.is_err() {
            continue;
        }
        let taken = control.drain().find_map(|message| {
            let RecvAncillaryMessage::ScmRights(mut descriptors) = message else { return None };
            descriptors.next()
        });
        break taken.expect("it came with the first byte");
    };
    rustix::io::write(&taken, b"hello").unwrap();
    let mut read = [0; 5];
    rustix::io::read(&reading, &mut read).unwrap();
    assert_eq!(&read, b"hello");
}
