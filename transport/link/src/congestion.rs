//! Cubic congestion control that lets go when the endpoint closes. Quinn holds back the packet that says goodbye while the
//! window is full, and a connection that is closing never learns that its window has room again (quinn 2785, fixed after
//! 0.11.19): a peer in the middle of a transfer would then wait out its idle timeout. Once the endpoint closes, the only
//! thing left to send is that goodbye, so the window no longer matters.

use std::{
    any::Any,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Instant,
};

use quinn::congestion::{Controller, ControllerFactory, ControllerMetrics, CubicConfig};
use quinn_proto::RttEstimator;

use crate::transport::MTU_MAX;

/// What may be under way before the first acknowledgement: twenty of the largest datagrams. Nodes are near each other and
/// a gigabit link takes this in a millisecond; quinn's 12,000 bytes hold one such datagram and not a second.
const INITIAL_WINDOW_BYTES: u64 = 20 * MTU_MAX as u64;

/// Whether the endpoint is closing; shared by all its connections.
#[derive(Debug, Clone, Default)]
pub(crate) struct Closing(Arc<AtomicBool>);

impl Closing {
    pub(crate) fn begin(&self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

pub(crate) struct Congestion {
    closing: Closing,
    cubic: Arc<CubicConfig>,
}

impl Congestion {
    pub(crate) fn new(closing: Closing) -> Self {
        let mut cubic = CubicConfig::default();
        cubic.initial_window(INITIAL_WINDOW_BYTES);
        Self { closing, cubic: Arc::new(cubic) }
    }
}

impl ControllerFactory for Congestion {
    fn build(self: Arc<Self>, now: Instant, current_mtu: u16) -> Box<dyn Controller> {
        let inner = self.cubic.clone().build(now, current_mtu);
        Box::new(Closable { closing: self.closing.clone(), inner })
    }
}

struct Closable {
    closing: Closing,
    inner: Box<dyn Controller>,
}

impl Controller for Closable {
    fn on_sent(&mut self, now: Instant, bytes: u64, last_packet_number: u64) {
        self.inner.on_sent(now, bytes, last_packet_number);
    }

    fn on_ack(&mut self, now: Instant, sent: Instant, bytes: u64, app_limited: bool, rtt: &RttEstimator) {
        self.inner.on_ack(now, sent, bytes, app_limited, rtt);
    }

    fn on_end_acks(&mut self, now: Instant, in_flight: u64, app_limited: bool, largest_packet_num_acked: Option<u64>) {
        self.inner.on_end_acks(now, in_flight, app_limited, largest_packet_num_acked);
    }

    fn on_congestion_event(&mut self, now: Instant, sent: Instant, is_persistent_congestion: bool, lost_bytes: u64) {
        self.inner.on_congestion_event(now, sent, is_persistent_congestion, lost_bytes);
    }

    fn on_mtu_update(&mut self, new_mtu: u16) {
        self.inner.on_mtu_update(new_mtu);
    }

    fn window(&self) -> u64 {
        // Beyond 4 GiB quinn does not pace either.
        if self.closing.0.load(Ordering::Relaxed) { u64::MAX } else { self.inner.window() }
    }

    fn metrics(&self) -> ControllerMetrics {
        self.inner.metrics()
    }

    fn clone_box(&self) -> Box<dyn Controller> {
        Box::new(Self { closing: self.closing.clone(), inner: self.inner.clone_box() })
    }

    fn initial_window(&self) -> u64 {
        self.inner.initial_window()
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any> {
        self.inner.into_any()
    }
}
