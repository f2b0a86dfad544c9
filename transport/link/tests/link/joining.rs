use std::{
    net::SocketAddr,
    sync::atomic::Ordering,
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use pollux_link::{Authority, Binding, Class, Identity, JoinError, NodeKey, Role, Token, join};
use pollux_wire::{VERSION, id::NodeId};

use crate::harness::*;

fn token(authority: &Authority, addresses: Vec<SocketAddr>, valid: Duration) -> Token {
    Token::create(authority.cluster(), authority.fingerprint(), "leda", addresses, SystemTime::now() + valid).unwrap()
}

/// A member that admits whoever holds this token.
fn gatekeeper(number: u8, valid: Duration) -> (Node, Token) {
    let authority = authority(number);
    let node = start(&authority, 1, Role::Member);
    let token = token(&authority, vec![node.endpoint.local_address()], valid);
    assert!(node.service.admits_with.set((authority, token.clone())).is_ok());
    (node, token)
}

const HOUR: Duration = Duration::from_secs(3600);

#[tokio::test]
async fn a_node_joins_with_a_token_and_is_one_of_them() {
    let (gate, token) = gatekeeper(1, HOUR);
    let pasted: Token = token.to_string().parse().unwrap();
    let key = NodeKey::generate().unwrap();
    let listen: SocketAddr = "127.0.0.1:7321".parse().unwrap();

    let joined = join(&pasted, "leda", listen, &key, SOON).await.unwrap();
    assert_eq!((joined.identity.node(), joined.identity.name()), (NodeId(9), "leda"));
    assert_eq!(joined.members, [(NodeId(1), listen)]);
    assert_eq!(gate.endpoint.counters().joins_served, 1);

    // The identity survives the disk and opens doors.
    let directory = tempfile::tempdir().unwrap();
    joined.identity.save(directory.path()).unwrap();
    let leda = start_with(Binding::new(loopback(), Identity::load(directory.path()).unwrap()));
    leda.endpoint.call(&gate.to(), Class::Bulk, MEMBERS, Bytes::new(), SOON).await.unwrap();
    assert_eq!(gate.service.calls.lock().unwrap()[0].0.node, NodeId(9));

    // The token does not.
    let again = join(&pasted, "leda", listen, &key, SOON).await.unwrap_err();
    assert!(matches!(again, JoinError::TokenUsed), "{again}");
    assert_eq!(gate.endpoint.counters().bad_token, 1);
}

#[tokio::test]
async fn an_expired_or_foreign_token_is_refused_and_counted() {
    let (gate, token) = gatekeeper(1, Duration::ZERO);
    let key = NodeKey::generate().unwrap();

    let mut forged = token.clone();
    forged.0.secret[0] ^= 1;
    let error = join(&forged, "leda", loopback(), &key, SOON).await.unwrap_err();
    assert!(matches!(error, JoinError::TokenUnknown), "{error}");

    gate.service.joins.store(0, Ordering::SeqCst);
    let error = join(&token, "leda", loopback(), &key, SOON).await.unwrap_err();
    assert!(matches!(error, JoinError::TokenExpired), "{error}");
    let counters = gate.endpoint.counters();
    assert_eq!((counters.bad_token, counters.joins_refused, counters.joins_served), (2, 2, 0));

    let error = join(&token, "castor", loopback(), &key, SOON).await.unwrap_err();
    assert!(matches!(error, JoinError::WrongName { .. }), "{error}");
}

#[tokio::test]
async fn the_secret_is_not_told_to_another_authority() {
    let (thief, _) = gatekeeper(2, HOUR);
    let ours = authority(1);
    let token = token(&ours, vec![thief.endpoint.local_address()], HOUR);

    let error = join(&token, "leda", loopback(), &NodeKey::generate().unwrap(), SOON).await.unwrap_err();
    assert!(matches!(error, JoinError::WrongAuthority { .. }), "{error}");
    eventually("it is counted", || thief.endpoint.counters().wrong_cluster == 1).await;
    // Not even a connection was set up over which it could have been told.
    assert_eq!(thief.service.joins.load(Ordering::SeqCst), 0);
    assert_eq!(thief.endpoint.counters().connections_accepted, 0);
}

#[tokio::test]
async fn a_thief_that_shows_the_right_authority_but_lacks_its_signature_learns_nothing() {
    let ours = authority(1);
    let genuine = identity(&ours, 1, Role::Member);
    // The chain of a genuine node is public; its key is not.
    let crypto = rustls::ServerConfig::builder_with_provider(rustls::crypto::aws_lc_rs::default_provider().into())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_no_client_auth();
    let fake = authority(1).identity(NodeId(1), "n1", Role::Member).unwrap();
    let directory = tempfile::tempdir().unwrap();
    fake.save(directory.path()).unwrap();
    let pem = std::fs::read(directory.path().join("identity.pem")).unwrap();
    let key = rustls::pki_types::pem::PemObject::from_pem_slice(&pem).unwrap();
    // The thief's own leaf under the genuine authority's certificate.
    let chain = vec![fake.certificate().to_vec().into(), genuine.ca().to_vec().into()];
    let mut crypto = crypto.with_single_cert(chain, key).unwrap();
    crypto.alpn_protocols = vec![b"pollux-join".to_vec()];
    let crypto = quinn::crypto::rustls::QuicServerConfig::try_from(crypto).unwrap();
    let thief =
        quinn::Endpoint::server(quinn::ServerConfig::with_crypto(std::sync::Arc::new(crypto)), loopback()).unwrap();
    let token = token(&ours, vec![thief.local_addr().unwrap()], HOUR);

    let key = NodeKey::generate().unwrap();
    let (joined, met) = tokio::join!(join(&token, "leda", loopback(), &key, SOON), async {
        thief.accept().await.unwrap().await.map(drop)
    });
    assert!(matches!(joined, Err(JoinError::Unreachable { .. } | JoinError::WrongAuthority { .. })), "{joined:?}");
    assert!(met.is_err(), "the handshake must not complete");
}

#[tokio::test]
async fn the_next_address_is_tried_when_one_leads_nowhere() {
    let (gate, mut token) = gatekeeper(1, HOUR);
    let silent = std::net::UdpSocket::bind(loopback()).unwrap();
    token.0.addresses.insert(0, silent.local_addr().unwrap());
    let joined = join(&token, "leda", loopback(), &NodeKey::generate().unwrap(), Duration::from_secs(4)).await.unwrap();
    assert_eq!(joined.identity.node(), NodeId(9));
    assert_eq!(gate.endpoint.counters().joins_served, 1);
}

#[tokio::test]
async fn a_cluster_of_another_version_is_named_before_the_secret_is_sent() {
    let authority = authority(1);
    let mut binding = Binding::new(loopback(), identity(&authority, 1, Role::Member));
    binding.version = VERSION + 1;
    let gate = start_with(binding);
    let token = token(&authority, vec![gate.endpoint.local_address()], HOUR);
    let error = join(&token, "leda", loopback(), &NodeKey::generate().unwrap(), SOON).await.unwrap_err();
    assert!(matches!(error, JoinError::Version { ours: VERSION, theirs } if theirs == VERSION + 1), "{error}");
    assert_eq!(gate.service.joins.load(Ordering::SeqCst), 0);
}
