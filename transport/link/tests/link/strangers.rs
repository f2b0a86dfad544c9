use std::sync::{Arc, atomic::Ordering};

use bytes::Bytes;
use pollux_link::{Binding, CallError, Class, DialError, NotSent, Role, To};
use pollux_wire::{
    VERSION, fault,
    id::{ClusterId, NodeId},
};

use crate::harness::*;

/// Why a call was not sent.
async fn dial_error(from: &Node, to: To) -> DialError {
    match from.endpoint.call(&to, Class::Bulk, ECHO, Bytes::new(), SOON).await {
        Err(CallError::NotSent { reason: NotSent::Dial(error), .. }) => error,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn another_cluster_is_named_there_and_counted_here() {
    let ours = start(&authority(1), 1, Role::Member);
    let theirs = start(&authority(2), 2, Role::Member);

    let error = dial_error(&ours, theirs.to()).await;
    let DialError::WrongCluster { ours: mine, theirs: other, .. } = &error else { panic!("{error}") };
    assert_eq!((*mine, *other), (ClusterId([1; 16]), Some(ClusterId([2; 16]))));
    assert!(error.to_string().contains("0202020202") && error.to_string().contains("0101010101"), "{error}");
    eventually("it is counted", || theirs.endpoint.counters().wrong_cluster == 1).await;
    assert_eq!(theirs.endpoint.counters().connections_accepted, 0);
    assert!(theirs.service.calls.lock().unwrap().is_empty());
}

#[tokio::test]
async fn an_authority_of_the_same_cluster_name_is_still_another() {
    let ours = start(&authority(1), 1, Role::Member);
    let impostor = start(&authority(1), 2, Role::Member);
    let error = dial_error(&ours, impostor.to()).await;
    assert!(matches!(error, DialError::WrongCluster { theirs: None, .. } | DialError::NotPollux { .. }), "{error:?}");
    assert!(impostor.service.calls.lock().unwrap().is_empty());
}

#[tokio::test]
async fn only_the_node_that_was_meant_will_do() {
    let (a, b) = pair();
    let error = dial_error(&a, To { node: NodeId(3), address: b.endpoint.local_address() }).await;
    assert!(matches!(error, DialError::WrongNode { expected: NodeId(3), found: Some(NodeId(2)), .. }), "{error:?}");
    eventually("it is counted", || b.endpoint.counters().wrong_identity == 1).await;
    assert!(b.service.calls.lock().unwrap().is_empty());
}

#[tokio::test]
async fn a_role_that_may_not_is_refused_and_counted() {
    let authority = authority(1);
    let (witness, member) = (start(&authority, 1, Role::Witness), start(&authority, 2, Role::Member));
    let call = async |method| witness.endpoint.call(&member.to(), Class::Bulk, method, Bytes::new(), SOON).await;

    let error = call(MEMBERS).await.unwrap_err();
    assert!(matches!(&error, CallError::Refused { fault, .. } if fault.code == fault::ROLE), "{error}");
    assert!(error.is_surely_not_executed());
    assert_eq!(member.endpoint.counters().wrong_role, 1);
    assert!(member.service.calls.lock().unwrap().is_empty());

    call(ECHO).await.unwrap();
    let error = call(99).await.unwrap_err();
    assert!(matches!(&error, CallError::Refused { fault, .. } if fault.code == fault::METHOD), "{error}");
}

#[tokio::test]
async fn a_removed_node_is_refused_on_its_open_connection_and_on_a_new_one() {
    let (a, b) = pair();
    a.endpoint.call(&b.to(), Class::Bulk, ECHO, Bytes::new(), SOON).await.unwrap();

    b.service.evicts.store(true, Ordering::SeqCst);
    let error = a.endpoint.call(&b.to(), Class::Bulk, ECHO, Bytes::new(), SOON).await.unwrap_err();
    assert!(matches!(&error, CallError::Refused { fault, .. } if fault.code == fault::NOT_ADMITTED), "{error}");
    let error = a.endpoint.call(&b.to(), Class::Consensus, ECHO, Bytes::new(), SOON).await.unwrap_err();
    assert!(matches!(&error, CallError::NotSent { reason: NotSent::Dial(DialError::Refused { .. }), .. }), "{error}");
    assert_eq!(b.endpoint.counters().not_admitted, 2);
}

#[tokio::test]
async fn another_version_is_refused_with_both_named() {
    let authority = authority(1);
    let old = start(&authority, 1, Role::Member);
    let mut binding = Binding::new(loopback(), identity(&authority, 2, Role::Member));
    binding.version = 7;
    let new = start_with(binding);

    let error = dial_error(&old, new.to()).await;
    assert!(matches!(error, DialError::Version { ours: VERSION, theirs: 7, .. }), "{error:?}");
    let text = error.to_string();
    assert!(text.contains("version 7") && text.contains(&format!("speaks {VERSION}")), "{text}");
    assert_eq!(new.endpoint.counters().wrong_version, 1);

    let error = dial_error(&new, old.to()).await;
    assert!(matches!(error, DialError::Version { ours: 7, theirs: VERSION, .. }), "{error:?}");
    assert_eq!(old.endpoint.counters().wrong_version, 1);
}

#[tokio::test]
async fn garbage_is_counted_and_disturbs_nobody() {
    let (a, b) = pair();
    a.endpoint.call(&b.to(), Class::Bulk, ECHO, Bytes::new(), SOON).await.unwrap();
    let stranger = tokio::net::UdpSocket::bind(loopback()).await.unwrap();
    let address = b.endpoint.local_address();
    let before = b.endpoint.counters().garbage;
    let send = async |first: u8, size: usize| {
        let mut datagram = vec![0xe3; size];
        datagram[0] = first;
        stranger.send_to(&datagram, address).await.unwrap();
    };

    // Not QUIC; QUIC of another version; a connection that never was.
    for round in 1..=20 {
        send(0x01, 30).await;
        send(0xc0, 1200).await;
        send(0x45, 60).await;
        eventually("three more", || b.endpoint.counters().garbage == before + round * 3).await;
    }
    // First packets whose content is noise. Those whose reserved bits happen to decrypt to zero, one in four, get as far
    // as being counted; quinn drops the others without a word.
    for noise in 0..64 {
        let mut initial = vec![noise; 1200];
        initial[..7].copy_from_slice(&[0xc3, 0, 0, 0, 1, 8, noise]);
        initial[14..18].copy_from_slice(&[0, 0, 0x44, 0x80]);
        stranger.send_to(&initial, address).await.unwrap();
    }
    eventually("some more", || b.endpoint.counters().garbage > before + 60).await;

    let body = Bytes::from_static(b"still here");
    assert_eq!(a.endpoint.call(&b.to(), Class::Bulk, ECHO, body.clone(), SOON).await.unwrap(), body);
    assert_eq!(b.endpoint.counters().connections_accepted, 1);
}

#[tokio::test]
async fn a_client_of_the_right_protocol_without_a_certificate_gets_nowhere() {
    let authority = authority(1);
    let b = start(&authority, 2, Role::Member);
    let mut roots = rustls::RootCertStore::empty();
    roots.add(authority.certificate().to_vec().into()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"pollux".to_vec()];
    let crypto = quinn::crypto::rustls::QuicClientConfig::try_from(config).unwrap();
    let endpoint = quinn::Endpoint::client(loopback()).unwrap();
    let name = format!("node-2.{}.pollux", authority.cluster());
    let connecting =
        endpoint.connect_with(quinn::ClientConfig::new(Arc::new(crypto)), b.endpoint.local_address(), &name).unwrap();

    if let Ok(connection) = connecting.await {
        connection.closed().await;
    }
    eventually("it is counted", || b.endpoint.counters().unauthenticated == 1).await;
    assert_eq!(b.endpoint.counters().connections_accepted, 0);
}
