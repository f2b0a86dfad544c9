//! Peers with a valid certificate and bad manners: they speak the bytes themselves instead of through an endpoint.

use std::sync::Arc;

use pollux_link::{Identity, Role};
use pollux_wire::{
    VERSION, fault,
    frame::{Ending, OUTCOME_BYTES, Opening, Outcome, StreamKind},
    handshake::{ANSWER_BYTES, Answer, Hello, Purpose, Verdict},
    id::{ClusterId, NodeId},
    limits,
};
use rustls::pki_types::pem::PemObject;

use crate::harness::*;

/// A TLS connection in the name of this identity, not yet greeted.
async fn connect(identity: &Identity, to: &Node) -> (quinn::Endpoint, quinn::Connection) {
    let directory = tempfile::tempdir().unwrap();
    identity.save(directory.path()).unwrap();
    let pem = std::fs::read(directory.path().join(pollux_link::IDENTITY_FILE)).unwrap();
    let mut roots = rustls::RootCertStore::empty();
    roots.add(identity.ca().to_vec().into()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots)
        .with_client_auth_cert(
            vec![identity.certificate().to_vec().into()],
            rustls::pki_types::PrivateKeyDer::from_pem_slice(&pem).unwrap(),
        )
        .unwrap();
    config.alpn_protocols = vec![b"pollux".to_vec()];
    let crypto = quinn::crypto::rustls::QuicClientConfig::try_from(config).unwrap();
    let endpoint = quinn::Endpoint::client(loopback()).unwrap();
    let name = format!("node-{}.{}.pollux", to.to().node.0, identity.cluster());
    let config = quinn::ClientConfig::new(Arc::new(crypto));
    let connection = endpoint.connect_with(config, to.to().address, &name).unwrap().await.unwrap();
    (endpoint, connection)
}

fn hello() -> Hello {
    Hello { version: VERSION, purpose: Purpose::Bulk, cluster: ClusterId([1; 16]), node: NodeId(2) }
}

async fn greet(connection: &quinn::Connection, hello: &[u8]) -> Answer {
    let (mut send, mut recv) = connection.open_bi().await.unwrap();
    send.write_all(hello).await.unwrap();
    send.finish().unwrap();
    let mut answer = [0; ANSWER_BYTES];
    recv.read_exact(&mut answer).await.unwrap();
    Answer::parse(answer, VERSION).unwrap()
}

async fn say(connection: &quinn::Connection, bytes: &[u8]) -> Option<Outcome> {
    let (mut send, mut recv) = connection.open_bi().await.unwrap();
    send.write_all(bytes).await.unwrap();
    send.finish().unwrap();
    let mut outcome = [0; OUTCOME_BYTES];
    recv.read_exact(&mut outcome).await.ok()?;
    Some(Outcome::parse(outcome).unwrap())
}

#[tokio::test]
async fn a_hello_that_claims_something_else_than_its_certificate_is_refused() {
    let authority = authority(1);
    let node = start(&authority, 1, Role::Member);
    let own = identity(&authority, 2, Role::Member);
    let try_hello = async |bytes: &[u8]| {
        let (_endpoint, connection) = connect(&own, &node).await;
        let answer = greet(&connection, bytes).await;
        connection.closed().await;
        answer.verdict
    };

    assert_eq!(try_hello(&Hello { node: NodeId(3), ..hello() }.to_bytes()).await, Verdict::WrongIdentity);
    assert_eq!(try_hello(&Hello { purpose: Purpose::Join, ..hello() }.to_bytes()).await, Verdict::WrongIdentity);
    let elsewhere = Hello { cluster: ClusterId([9; 16]), ..hello() };
    assert_eq!(try_hello(&elsewhere.to_bytes()).await, Verdict::WrongCluster);
    assert_eq!(try_hello(b"GET / HTTP/1.1\r\nHost: example\r\n\r\n").await, Verdict::WrongIdentity);

    let counters = node.endpoint.counters();
    assert_eq!((counters.wrong_identity, counters.wrong_cluster, counters.malformed), (2, 1, 1));
    assert_eq!(counters.connections_accepted, 0);
}

#[tokio::test]
async fn sizes_and_kinds_are_checked_by_the_receiver_too() {
    let authority = authority(1);
    let node = start(&authority, 1, Role::Member);
    let (_endpoint, connection) = connect(&identity(&authority, 2, Role::Member), &node).await;
    assert_eq!(greet(&connection, &hello().to_bytes()).await.verdict, Verdict::Accepted);
    let opening = Opening { kind: StreamKind::Call, method: ECHO, body_bytes: 0, patience_ms: 1000 };
    let over = |limit_bytes: usize| u32::try_from(limit_bytes + 1).unwrap();

    // Announcing too much is enough; the bytes need not come.
    let call = Opening { body_bytes: over(limits::CONTROL_BYTES_MAX), ..opening };
    let outcome = say(&connection, &call.to_bytes()).await.unwrap();
    assert_eq!(outcome.ending, Ending::Refused(fault::TOO_LARGE));
    let session = Opening {
        kind: StreamKind::Session,
        method: MIRROR,
        body_bytes: over(limits::SESSION_HEADER_BYTES_MAX),
        ..opening
    };
    let outcome = say(&connection, &session.to_bytes()).await.unwrap();
    assert_eq!(outcome.ending, Ending::Refused(fault::TOO_LARGE));
    let join = Opening { kind: StreamKind::Join, ..opening };
    assert_eq!(say(&connection, &join.to_bytes()).await.unwrap().ending, Ending::Refused(fault::METHOD));
    assert!(say(&connection, &[0xff; 40]).await.is_none(), "no header, no answer");
    assert!(say(&connection, &[1]).await.is_none(), "half a header, no answer");
    let cut = Opening { body_bytes: 100, ..opening };
    assert!(say(&connection, &cut.to_bytes()).await.is_none(), "a body that ends early is never served");

    let counters = node.endpoint.counters();
    assert_eq!((counters.oversize, counters.unknown_method, counters.malformed), (2, 1, 2));
    assert_eq!((counters.calls_served, counters.sessions_served), (0, 0));
    // The connection is still good for those who behave.
    assert_eq!(say(&connection, &opening.to_bytes()).await.unwrap().ending, Ending::Done);
}
