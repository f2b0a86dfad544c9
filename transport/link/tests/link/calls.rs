use std::time::{Duration, Instant};

use bytes::Bytes;
use pollux_link::{Binding, CallError, Class, DialError, NotSent, Role, To, Unknown};
use pollux_wire::{fault, id::NodeId, limits};

use crate::harness::*;

#[tokio::test]
async fn a_call_comes_back_and_the_callee_knows_who_called() {
    let (a, b) = pair();
    let body = Bytes::from_static(b"who is there?");

    for class in [Class::Consensus, Class::Bulk] {
        let answer = a.endpoint.call(&b.to(), class, ECHO, body.clone(), SOON).await.unwrap();
        assert_eq!(answer, body);
    }

    let calls = b.service.calls.lock().unwrap().clone();
    assert_eq!(calls.len(), 2);
    assert_eq!((calls[0].0.node, calls[0].0.role, calls[0].1), (NodeId(1), Role::Member, Class::Consensus));
    assert_eq!(calls[0].0.address, a.endpoint.local_address(), "both directions use the one socket");
    assert_eq!(calls[1].1, Class::Bulk);
    assert_eq!(b.endpoint.counters().connections_accepted, 2, "one connection per class");
    let path = a.endpoint.path(NodeId(2), Class::Bulk).unwrap();
    assert!(path.rtt_us > 0 && path.sent_bytes > 0, "{path:?}");
}

#[tokio::test]
async fn a_connection_is_shared_by_those_who_need_it_at_once() {
    let (a, b) = pair();
    let calls = (0..200_u32).map(|number| {
        let (endpoint, to) = (a.endpoint.clone(), b.to());
        async move {
            let body = Bytes::copy_from_slice(&number.to_le_bytes());
            assert_eq!(endpoint.call(&to, Class::Bulk, ECHO, body.clone(), SOON).await.unwrap(), body);
        }
    });
    let mut running = tokio::task::JoinSet::new();
    calls.for_each(|call| drop(running.spawn(call)));
    while let Some(ended) = running.join_next().await {
        ended.unwrap();
    }
    assert_eq!(a.endpoint.counters().connections_dialled, 1);
}

#[tokio::test]
async fn a_fault_is_an_answer() {
    let (a, b) = pair();
    let error = a.endpoint.call(&b.to(), Class::Bulk, FAIL, Bytes::new(), SOON).await.unwrap_err();
    let CallError::Fault { fault, .. } = &error else { panic!("{error}") };
    assert_eq!((fault.code, fault.text.as_str()), (fault::SERVICE_FIRST, "the roof is on fire"));
    assert!(!error.is_unknown() && !error.is_surely_not_executed());
}

#[tokio::test]
async fn no_answer_in_time_is_unknown_and_the_callee_gives_up_too() {
    let (a, b) = pair();
    a.endpoint.call(&b.to(), Class::Bulk, ECHO, Bytes::new(), SOON).await.unwrap();
    let patience = Duration::from_millis(500);
    let error = a.endpoint.call(&b.to(), Class::Bulk, HANG, Bytes::new(), patience).await.unwrap_err();
    assert!(matches!(error, CallError::Unknown { reason: Unknown::Deadline(_), .. }), "{error}");
    assert!(error.is_unknown() && !error.is_surely_not_executed());
    eventually("the callee gives up", || b.endpoint.counters().overdue == 1).await;
}

#[tokio::test]
async fn where_nobody_listens_nothing_was_sent() {
    let (a, b) = pair();
    b.endpoint.close().await;
    let error = a.endpoint.call(&b.to(), Class::Consensus, ECHO, Bytes::new(), SOON).await.unwrap_err();
    assert!(error.is_surely_not_executed(), "{error}");
    assert!(
        matches!(&error, CallError::NotSent { reason: NotSent::Dial(DialError::Unreachable { .. }), .. }),
        "{error:?}"
    );
    // Until the next attempt is due, those who cannot wait for it are told at once.
    let begun = Instant::now();
    let brief = Duration::from_millis(10);
    let error = a.endpoint.call(&b.to(), Class::Consensus, ECHO, Bytes::new(), brief).await.unwrap_err();
    assert!(
        matches!(&error, CallError::NotSent { reason: NotSent::Dial(DialError::BackingOff { .. }), .. }),
        "{error:?}"
    );
    assert!(begun.elapsed() < Duration::from_millis(500));
}

#[tokio::test]
async fn a_lost_callee_leaves_the_outcome_unknown() {
    let (a, b) = pair();
    let to = b.to();
    let call = a.endpoint.call(&to, Class::Bulk, HANG, Bytes::new(), SOON);
    let close = async {
        eventually("the call arrives", || b.endpoint.counters().calls_served == 1).await;
        b.endpoint.close().await;
    };
    let (answer, ()) = tokio::join!(call, close);
    let error = answer.unwrap_err();
    assert!(matches!(error, CallError::Unknown { reason: Unknown::Lost(_), .. }), "{error:?}");
}

#[tokio::test]
async fn too_much_is_refused_before_it_is_sent_and_before_it_is_answered() {
    let (a, b) = pair();
    let body = Bytes::from(vec![0; limits::CONTROL_BYTES_MAX + 1]);
    let error = a.endpoint.call(&b.to(), Class::Bulk, ECHO, body.clone(), SOON).await.unwrap_err();
    assert!(matches!(error, CallError::TooLarge { limit_bytes: limits::CONTROL_BYTES_MAX, .. }), "{error}");
    assert!(error.is_surely_not_executed());

    let fits = body.slice(1..);
    assert_eq!(a.endpoint.call(&b.to(), Class::Bulk, ECHO, fits.clone(), SOON).await.unwrap(), fits);

    let error = a.endpoint.call(&b.to(), Class::Bulk, FLOOD, Bytes::new(), SOON).await.unwrap_err();
    assert!(matches!(&error, CallError::Fault { fault, .. } if fault.code == fault::ANSWER_TOO_LARGE), "{error}");
    assert_eq!(b.endpoint.counters().oversize, 1);
}

#[tokio::test]
async fn a_callee_takes_so_many_calls_at_once_and_no_more() {
    let authority = authority(1);
    let a = start(&authority, 1, Role::Member);
    let mut binding = Binding::new(loopback(), identity(&authority, 2, Role::Member));
    binding.limits.calls_per_connection = 1;
    let b = start_with(binding);

    let to = b.to();
    let first = a.endpoint.call(&to, Class::Bulk, HANG, Bytes::new(), Duration::from_secs(2));
    let second = async {
        eventually("the first call runs", || b.endpoint.counters().calls_served == 1).await;
        a.endpoint.call(&b.to(), Class::Bulk, ECHO, Bytes::new(), Duration::from_millis(400)).await
    };
    let (_, second) = tokio::join!(first, second);
    let error = second.unwrap_err();
    assert!(matches!(&error, CallError::Refused { fault, .. } if fault.code == fault::BUSY), "{error}");
    assert!(error.is_surely_not_executed());
    assert_eq!(b.endpoint.counters().busy, 1);
}

#[tokio::test]
async fn an_endpoint_that_closed_says_so() {
    let (a, b) = pair();
    a.endpoint.call(&b.to(), Class::Bulk, ECHO, Bytes::new(), SOON).await.unwrap();
    let begun = Instant::now();
    a.endpoint.close().await;
    a.endpoint.close().await;
    assert!(begun.elapsed() < Duration::from_secs(2), "closing is quick when nothing hangs: {:?}", begun.elapsed());
    let error = a.endpoint.call(&b.to(), Class::Bulk, ECHO, Bytes::new(), SOON).await.unwrap_err();
    assert!(matches!(error, CallError::NotSent { reason: NotSent::Dial(DialError::Closing), .. }), "{error:?}");
}

#[tokio::test]
async fn a_forgotten_peer_makes_room_for_another() {
    let authority = authority(1);
    let mut binding = Binding::new(loopback(), identity(&authority, 1, Role::Member));
    binding.limits.peers = 1;
    let a = start_with(binding);
    let b = start(&authority, 2, Role::Member);
    let c = start(&authority, 3, Role::Member);
    let call = async |to: To, class| a.endpoint.call(&to, class, ECHO, Bytes::new(), SOON).await;

    call(b.to(), Class::Bulk).await.unwrap();
    call(b.to(), Class::Consensus).await.unwrap();
    let error = call(c.to(), Class::Bulk).await.unwrap_err();
    assert!(matches!(error, CallError::NotSent { reason: NotSent::Dial(DialError::TooManyPeers { max: 1 }), .. }));

    a.endpoint.forget(NodeId(2));
    assert_eq!(a.endpoint.path(NodeId(2), Class::Bulk), None);
    call(c.to(), Class::Bulk).await.unwrap();
}
