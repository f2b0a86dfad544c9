//! How QUIC is set up: times, windows and limits, each with its reason.

use std::{sync::Arc, time::Duration};

use aws_lc_rs::hmac;
use pollux_wire::limits;
use quinn::{AckFrequencyConfig, EndpointConfig, IdleTimeout, MtuDiscoveryConfig, TransportConfig, VarInt};

use crate::{
    certificate::sha256,
    cid::CidGenerator,
    congestion::{Closing, Congestion},
    counters::Counting,
    identity::Identity,
    service::Class,
    tls::{Tls, TlsError},
};

/// A consensus connection without a sign of life for this long is gone. A killed peer sends nothing, so this bounds how
/// long calls go to a dead one; ten missed keep-alives keep a busy host from being taken for a dead one.
pub const CONSENSUS_IDLE: Duration = Duration::from_secs(2);
/// The same for bulk connections, which may be starved for a moment by what they carry, and cost more to set up again.
pub const BULK_IDLE: Duration = Duration::from_secs(5);
/// A consensus connection shows a sign of life this often.
pub const CONSENSUS_KEEP_ALIVE: Duration = Duration::from_millis(200);
/// A bulk connection shows a sign of life this often.
pub const BULK_KEEP_ALIVE: Duration = Duration::from_millis(500);
/// An attempt to open a consensus connection ends after this.
pub const CONSENSUS_DIAL_MAX: Duration = Duration::from_secs(1);
/// An attempt to open a bulk connection ends after this.
pub const BULK_DIAL_MAX: Duration = Duration::from_secs(3);

/// The round trip assumed before one was measured. Nodes are near each other; QUIC's default of 333 ms would make a lost
/// first datagram cost a second.
const INITIAL_RTT: Duration = Duration::from_millis(30);
/// The largest datagram. Quinn hands up to ten to the kernel at once, which must stay below 64 KiB together or the
/// connection collapses (DESIGN, 7); jumbo frames carry 6,500 with room to spare.
pub(crate) const MTU_MAX: u16 = 6500;
/// What one stream may have under way: a gigabit link with 100 ms of delay, filled. Bytes.
const STREAM_WINDOW_BYTES: u32 = 16 << 20;
/// What one connection may have under way, so that four streams can be full. Bytes.
const CONNECTION_WINDOW_BYTES: u32 = 64 << 20;
/// What one connection may hold that was written and not yet acknowledged. Bytes. Less than the receiver would take: what
/// stands here has left the sender's own budget, and a priority comes too late for it.
const SEND_WINDOW_BYTES: u64 = 16 << 20;
/// An acknowledgement of its own is sent when more than so many packets wait for one. QUIC's default of one has each block that a
/// replica is sent acknowledged by a datagram of its own a moment before the answer that would have carried that; and what is
/// streamed, by half as many datagrams as it takes. Less than a connection may send at its beginning (ten packets), which would wait otherwise.
const ACK_THRESHOLD: u32 = 8;
/// Or when the first of them has waited for so long: the least that quinn's timers know.
const ACK_DELAY: Duration = Duration::from_millis(1);
/// Streams a peer may have open at once on one connection: its calls, its sessions, and the handshake.
const STREAMS_MAX: usize = limits::CALLS_PER_CONNECTION_MAX + limits::SESSIONS_PER_CONNECTION_MAX + 1;
/// First datagrams of connections not yet accepted. Count.
const INCOMING_MAX: usize = 256;

/// How long a dial may take.
pub(crate) const fn dial_max(class: Class) -> Duration {
    match class {
        Class::Consensus => CONSENSUS_DIAL_MAX,
        Class::Bulk => BULK_DIAL_MAX,
    }
}

/// Of two idle timeouts the smaller one holds, so that the dialling side decides by its class.
fn transport(closing: Closing, idle: Duration, keep_alive: Option<Duration>, streams_max: usize) -> TransportConfig {
    let mut mtu = MtuDiscoveryConfig::default();
    mtu.upper_bound(MTU_MAX);
    let streams_max = u32::try_from(streams_max).unwrap_or(u32::MAX);
    let idle = u32::try_from(idle.as_millis()).unwrap_or(u32::MAX);
    let mut acks = AckFrequencyConfig::default();
    acks.ack_eliciting_threshold(ACK_THRESHOLD.into()).max_ack_delay(Some(ACK_DELAY));
    let mut config = TransportConfig::default();
    config
        .ack_frequency_config(Some(acks))
        .max_concurrent_bidi_streams(streams_max.into())
        .max_concurrent_uni_streams(0_u32.into())
        .datagram_receive_buffer_size(None)
        .max_idle_timeout(Some(IdleTimeout::from(VarInt::from_u32(idle))))
        .keep_alive_interval(keep_alive)
        .initial_rtt(INITIAL_RTT)
        .stream_receive_window(STREAM_WINDOW_BYTES.into())
        .receive_window(CONNECTION_WINDOW_BYTES.into())
        .send_window(SEND_WINDOW_BYTES)
        .mtu_discovery_config(Some(mtu))
        .congestion_controller_factory(Arc::new(Congestion::new(closing)));
    config
}

/// The transport of a dialling side. It takes no streams from the other: each side dials for itself.
pub(crate) fn dialling(closing: Closing, class: Class) -> Arc<TransportConfig> {
    let (idle, keep_alive) = match class {
        Class::Consensus => (CONSENSUS_IDLE, CONSENSUS_KEEP_ALIVE),
        Class::Bulk => (BULK_IDLE, BULK_KEEP_ALIVE),
    };
    Arc::new(transport(closing, idle, Some(keep_alive), 0))
}

/// The server side of an endpoint.
pub(crate) fn server(tls: &Tls, closing: Closing) -> Result<quinn::ServerConfig, TlsError> {
    let mut config = quinn::ServerConfig::with_crypto(Arc::new(tls.server()?));
    config
        .transport_config(Arc::new(transport(closing, BULK_IDLE, None, STREAMS_MAX)))
        .max_incoming(INCOMING_MAX)
        // Nodes do not change their address while they talk.
        .migration(false);
    Ok(config)
}

/// The endpoint itself. Reset key and connection ids follow from the identity, so that a node that restarted at its old
/// address can tell its peers at once that their connections are gone, instead of leaving them to their idle timeouts.
pub(crate) fn endpoint(identity: &Identity, counting: Arc<Counting>, seed: Option<u64>) -> EndpointConfig {
    let key = identity.key().private_der();
    let derived = |purpose: &[u8]| sha256(&[purpose, key.secret_der()].concat());
    let mut config = plain_endpoint(&derived(b"pollux stateless reset"), seed);
    let cid_key = derived(b"pollux connection id");
    config.cid_generator(move || Box::new(CidGenerator::new(&cid_key, counting.clone(), seed)));
    config
}

/// An endpoint for one outgoing connection, without an identity.
pub(crate) fn plain_endpoint(reset_key: &[u8; 32], seed: Option<u64>) -> EndpointConfig {
    let mut config = EndpointConfig::new(Arc::new(hmac::Key::new(hmac::HMAC_SHA256, reset_key)));
    config
        .supported_versions(vec![crate::socket::QUIC_V1])
        // Only then is a datagram without the fixed bit certainly not ours.
        .grease_quic_bit(false)
        .rng_seed(seed.map(|seed| sha256(&seed.to_le_bytes())));
    if config.max_udp_payload_size(MTU_MAX).is_err() {
        unreachable!("the largest datagram is within what QUIC allows");
    }
    config
}
