use std::time::{Duration, Instant};

use bytes::Bytes;
use pollux_link::{Binding, CONSENSUS_IDLE, Class, Role};

use crate::harness::*;

#[tokio::test]
async fn a_peer_that_was_closed_and_bound_again_is_reached_again() {
    let authority = authority(1);
    let a = start(&authority, 1, Role::Member);
    let b = start(&authority, 2, Role::Member);
    let (to, identity) = (b.to(), b.endpoint.identity().clone());
    a.endpoint.call(&to, Class::Bulk, ECHO, Bytes::new(), SOON).await.unwrap();

    b.endpoint.close().await;
    // The address is free again although `b` still exists.
    let again = start_with(Binding::new(to.address, identity));
    let mut attempts = 0;
    while a.endpoint.call(&to, Class::Bulk, ECHO, Bytes::new(), SOON).await.is_err() {
        attempts += 1;
        assert!(attempts < 5);
    }
    assert_eq!(again.endpoint.counters().calls_served, 1);
}

#[test]
fn a_peer_that_crashed_and_came_back_is_reached_before_the_idle_timeout() {
    let runtime = || tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let (here, there) = (runtime(), runtime());
    let authority = authority(1);
    let a = here.block_on(async { start(&authority, 1, Role::Member) });
    let b = there.block_on(async { start(&authority, 2, Role::Member) });
    let (to, identity) = (b.to(), b.endpoint.identity().clone());
    let call = || here.block_on(a.endpoint.call(&to, Class::Consensus, ECHO, Bytes::new(), SOON));
    call().unwrap();

    // All tasks vanish in the middle of whatever they do: no farewell reaches the peer.
    there.shutdown_timeout(Duration::from_secs(1));
    drop(b);
    let again = here.block_on(async { start_with(Binding::new(to.address, identity)) });

    let begun = Instant::now();
    while let Err(error) = call() {
        assert!(begun.elapsed() < CONSENSUS_IDLE * 3 / 4, "{error:?}");
    }
    println!("reached again after {:?}", begun.elapsed());
    assert!(begun.elapsed() < CONSENSUS_IDLE / 2, "the restarted node says that its connections are gone");
    assert_eq!(again.endpoint.counters().garbage, 0, "packets of an earlier life are not garbage");
    here.block_on(async { tokio::join!(a.endpoint.close(), again.endpoint.close()) });
}
