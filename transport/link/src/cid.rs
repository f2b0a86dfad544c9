//! Connection ids that carry a proof of their origin: four random bytes and four of a keyed hash over them. Quinn asks
//! whether an id could be ours only when a datagram belongs to no connection it knows; a no is garbage, a yes belongs to an
//! earlier life of this node and is answered with a reset.

use std::{sync::Arc, time::Duration};

use aws_lc_rs::hmac;
use quinn::{ConnectionId, ConnectionIdGenerator};
use quinn_proto::InvalidCid;
use rand::{RngCore, SeedableRng, rngs::StdRng};

use crate::counters::Counting;

const NONCE_BYTES: usize = 4;
const PROOF_BYTES: usize = 4;

pub(crate) struct CidGenerator {
    key: hmac::Key,
    random: StdRng,
    counting: Arc<Counting>,
}

impl CidGenerator {
    pub(crate) fn new(key: &[u8; 32], counting: Arc<Counting>, seed: Option<u64>) -> Self {
        let random = seed.map_or_else(StdRng::from_entropy, StdRng::seed_from_u64);
        Self { key: hmac::Key::new(hmac::HMAC_SHA256, key), random, counting }
    }

    fn proof(&self, nonce: &[u8]) -> [u8; PROOF_BYTES] {
        let mut proof = [0; PROOF_BYTES];
        proof.copy_from_slice(&hmac::sign(&self.key, nonce).as_ref()[..PROOF_BYTES]);
        proof
    }
}

impl ConnectionIdGenerator for CidGenerator {
    fn generate_cid(&mut self) -> ConnectionId {
        let mut id = [0; NONCE_BYTES + PROOF_BYTES];
        let (nonce, proof) = id.split_at_mut(NONCE_BYTES);
        self.random.fill_bytes(nonce);
        proof.copy_from_slice(&self.proof(nonce));
        ConnectionId::new(&id)
    }

    fn validate(&self, id: &ConnectionId) -> Result<(), InvalidCid> {
        if id.len() == NONCE_BYTES + PROOF_BYTES && self.proof(&id[..NONCE_BYTES]) == id[NONCE_BYTES..] {
            return Ok(());
        }
        self.counting.garbage.add();
        tracing::debug!("a datagram for a connection that never was");
        Err(InvalidCid)
    }

    fn cid_len(&self) -> usize {
        NONCE_BYTES + PROOF_BYTES
    }

    fn cid_lifetime(&self) -> Option<Duration> {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_recognised_across_lives_and_a_foreign_one_is_counted() {
        let counting = Arc::new(Counting::default());
        let id = CidGenerator::new(&[1; 32], counting.clone(), None).generate_cid();

        let later = CidGenerator::new(&[1; 32], counting.clone(), None);
        assert!(later.validate(&id).is_ok());
        assert_eq!(counting.read().garbage, 0);

        let other = CidGenerator::new(&[2; 32], counting.clone(), None);
        assert!(other.validate(&id).is_err());
        assert_eq!(counting.read().garbage, 1);
    }
}
