//! Making TAPs, and the refusals. Needs root: each test makes a network namespace.
#![allow(missing_docs, dead_code)]

mod world;

use std::{process::Command, time::Duration};

use pollux_net::{Carried, Tap, TapError, bridges, carried};
use pollux_wire::id::Generation;
use world::*;

#[test]
fn a_tap_is_there_until_it_is_dropped() {
    in_a_namespace(|| async {
        let tap = Tap::open("px1n0", BRIDGE, MTU).unwrap();
        assert!(has_interface("px1n0"));

        drop(tap);

        assert!(!has_interface("px1n0"));
        Tap::open("px1n0", BRIDGE, MTU).expect("the name is free again");
    });
}

#[test]
fn a_bridge_that_is_not_there_is_named_with_what_to_do() {
    in_a_namespace(|| async {
        let error = Tap::open("px1n0", "lan0", MTU).unwrap_err();

        assert!(matches!(error, TapError::NoBridge { .. }));
        let text = error.to_string();
        for part in ["'lan0'", "ip link add lan0 type bridge", "there are: br0"] {
            assert!(text.contains(part), "{part:?} is missing in: {text}");
        }
        assert!(!has_interface("px1n0"));
    });
}

#[test]
fn what_is_no_bridge_is_not_taken_for_one() {
    in_a_namespace(|| async {
        let error = Tap::open("px1n0", "lo", MTU).unwrap_err();

        assert!(matches!(error, TapError::NotABridge { .. }), "refused otherwise: {error}");
    });
}

#[test]
fn a_name_in_use_is_not_shared() {
    in_a_namespace(|| async {
        let _first = Tap::open("px1n0", BRIDGE, MTU).unwrap();

        assert!(matches!(Tap::open("px1n0", BRIDGE, MTU), Err(TapError::Busy { .. })));

        // Nor is one that somebody made to stay.
        ip(&["tuntap", "add", "px2n0", "mode", "tap"]);
        assert!(matches!(Tap::open("px2n0", BRIDGE, MTU), Err(TapError::Busy { .. })));
    });
}

#[test]
fn a_name_or_mtu_that_cannot_be_leaves_nothing_behind() {
    in_a_namespace(|| async {
        for name in ["", "sixteen-bytes-ab", "a/b", "a b", "px%d"] {
            assert!(matches!(Tap::open(name, BRIDGE, MTU), Err(TapError::BadName { .. })), "{name:?} was taken");
        }

        assert!(matches!(Tap::open("px1n0", BRIDGE, 10_000_000), Err(TapError::Narrow { .. })));
        assert!(matches!(Tap::open("px1n0", BRIDGE, 40), Err(TapError::BadMtu { .. })));
        assert!(!has_interface("px1n0"));
    });
}

#[test]
fn a_tap_that_comes_and_goes_leaves_the_bridges_address_alone() {
    in_a_namespace(|| async {
        ip(&["link", "add", "uplink", "address", "02:00:00:00:00:01", "type", "veth", "peer", "name", "far"]);
        ip(&["link", "set", "uplink", "master", BRIDGE, "up"]);
        let line = || Command::new("ip").args(["-br", "link", "show", BRIDGE]).output().unwrap().stdout;
        let address = || String::from_utf8(line()).unwrap().split_whitespace().nth(2).map(str::to_owned);
        let before = address();

        let _tap = Tap::open("px1n0", BRIDGE, MTU).unwrap();

        assert_eq!(address(), before);
    });
}

#[test]
fn the_bridges_listed_are_those_of_this_namespace() {
    in_a_namespace(|| async {
        ip(&["link", "add", "another", "type", "bridge"]);
        ip(&["link", "add", "no-bridge", "type", "veth", "peer", "name", "far"]);

        assert_eq!(bridges().unwrap(), ["another", "br0"]);
    });
}

#[test]
fn a_bridge_carries_what_its_narrowest_uplink_does() {
    in_a_namespace(|| async {
        let by = |by: &str, mtu| Some(Carried { mtu, by: by.to_owned() });
        assert_eq!(carried("lan0").unwrap(), None);
        assert_eq!(carried(BRIDGE).unwrap(), by(BRIDGE, 1500));
        ip(&["link", "add", "uplink", "mtu", "9000", "type", "veth", "peer", "name", "far"]);
        ip(&["link", "set", "uplink", "master", BRIDGE, "up"]);
        assert_eq!(carried(BRIDGE).unwrap().unwrap().mtu, 9000, "its MTU follows its ports' while nobody has set it");

        let _guest = Tap::open("px1n0", BRIDGE, MTU).unwrap();
        assert_eq!(carried(BRIDGE).unwrap(), by(BRIDGE, 1500), "also a guest's");
        ip(&["link", "set", BRIDGE, "mtu", "9000"]);
        assert_eq!(carried(BRIDGE).unwrap().unwrap().mtu, 9000, "one guest's card is not another's limit");

        ip(&["link", "set", "uplink", "mtu", "4000"]);
        assert_eq!(carried(BRIDGE).unwrap(), by("uplink", 4000));
        let error = Tap::open("px2n0", BRIDGE, 9000).unwrap_err();
        assert!(matches!(error, TapError::Narrow { carried: 4000, mtu: 9000, .. }), "refused otherwise: {error}");
        assert!(error.to_string().contains("ip link set uplink mtu 9000"), "{error}");
        assert!(!has_interface("px2n0"));
        Tap::open("px2n0", BRIDGE, 4000).expect("that much it carries");
    });
}

/// A host whose bridge carries less than Ethernet's own has run VMs of the default, and goes on.
#[test]
fn the_default_is_asked_of_no_bridge() {
    in_a_namespace(|| async {
        ip(&["link", "set", BRIDGE, "mtu", "1400"]);

        Tap::open("px1n0", BRIDGE, MTU).expect("as ever");
        assert!(matches!(Tap::open("px2n0", BRIDGE, 1450), Err(TapError::Narrow { .. })));
    });
}

#[test]
fn the_host_itself_says_nothing_to_the_guest() {
    in_a_namespace(|| async {
        let world = World::join();
        let mut guest = Guest::start(Generation(1));
        guest.port.open_gate(Generation(1)).await.unwrap();

        // The kernel's own IPv6 traffic would come within its first second on an interface.
        tokio::time::sleep(Duration::from_millis(1200)).await;
        world.says(1, 60).await;

        assert_eq!(number(&guest.sees().await), Some(1), "something came before the world's first frame");
    });
}
