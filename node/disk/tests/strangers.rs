//! The server before programs that others wrote: libnbd's, QEMU's and fio. Needs Debian's libnbd-bin, qemu-utils and fio.
#![allow(missing_docs)]

mod world;

use std::{fs, os::unix::fs::MetadataExt as _, process::Output};

use pollux_disk::{EngineKind, Pool, Replica};
use serde_json::Value;
use tokio::{net::UnixListener, process::Command};
use tokio_util::sync::CancellationToken;
use world::*;

const SIZE: u64 = 64 * MIB;

async fn program(argv: &[&str]) -> Output {
    let (name, arguments) = argv.split_first().unwrap();
    let output = Command::new(name).args(arguments).kill_on_drop(true).output().await;
    output.unwrap_or_else(|error| panic!("{name} does not start ({error}); run deploy/packages"))
}

/// Runs a program that must succeed.
async fn does(argv: &[&str]) -> String {
    let output = program(argv).await;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{argv:?}: {text}{}", String::from_utf8_lossy(&output.stderr));
    text
}

/// Serves a new replica to `story`, which knows the place and the URI.
fn served<F: Future<Output = ()>>(kind: EngineKind, story: impl FnOnce(String, std::path::PathBuf) -> F) {
    run(async {
        let place = Place::new();
        let disk: Replica = place.replica(SIZE, kind).await;
        let socket = place.path("socket");
        let stop = CancellationToken::new();
        let uri = format!("nbd+unix:///web-0?socket={}", socket.display());
        let serving = serve_each(UnixListener::bind(&socket).unwrap(), disk, stop.clone());
        tokio::join!(
            async {
                story(uri, place.directory.path().to_owned()).await;
                stop.cancel();
            },
            serving
        );
    });
}

#[test]
fn nbdinfo_sees_what_is_offered() {
    served(EngineKind::Best, |uri, _| async move {
        let info: Value = serde_json::from_str(&does(&["nbdinfo", "--json", &uri]).await).unwrap();
        assert_eq!(info["protocol"], "newstyle-fixed");
        assert_eq!(info["TLS"], false);
        assert_eq!(info["structured"], true);
        let export = &info["exports"][0];
        assert_eq!(export["export-size"], SIZE);
        for able in ["can_flush", "can_fua", "can_trim", "can_zero", "can_fast_zero", "can_df"] {
            assert_eq!(export[able], true, "{able}");
        }
        for unable in ["is_read_only", "can_multi_conn", "can_cache", "is_rotational"] {
            assert_eq!(export[unable], false, "{unable}");
        }
        assert_eq!(export["contexts"], serde_json::json!(["base:allocation"]));
        assert_eq!((&export["block_size_minimum"], &export["block_size_preferred"]), (&512.into(), &4096.into()));
        assert_eq!(export["block_size_maximum"], 32 << 20);

        let list: Value = serde_json::from_str(&does(&["nbdinfo", "--list", "--json", &uri]).await).unwrap();
        assert_eq!(list["exports"][0]["export-name"], "web-0");
        let wrong = program(&["nbdinfo", &uri.replace("web-0", "other")]).await;
        assert!(!wrong.status.success(), "an export that is not there was found");
    });
}

#[test]
fn nbdcopy_brings_an_image_in_and_out_and_its_holes_stay_holes() {
    for kind in ENGINES {
        served(kind, |uri, place| async move {
            // A quarter data, in pieces, the rest holes; and one block of zeros that is no hole.
            let (image, back) = (place.join("image"), place.join("back"));
            let mut bytes = vec![0; usize::try_from(SIZE).unwrap()];
            for piece in 0..16 {
                let at = piece * 4 * (1 << 20);
                bytes[at..at + (1 << 20)].copy_from_slice(&pattern(MIB, 200 + u8::try_from(piece).unwrap()));
            }
            fs::write(&image, &bytes).unwrap();
            let (image, back) = (image.to_str().unwrap(), back.to_str().unwrap());

            does(&["nbdcopy", "--flush", image, &uri]).await;
            does(&["nbdcopy", &uri, back]).await;

            assert!(fs::read(back).unwrap() == bytes);
            let allocated = |path: &std::path::Path| fs::metadata(path).unwrap().blocks() * 512;
            assert!(allocated(&place.join("v/data")) <= 16 * MIB + 65536, "zeros became data");
            let map: Value = serde_json::from_str(&does(&["nbdinfo", "--map", "--json", &uri]).await).unwrap();
            let map = map.as_array().unwrap();
            assert_eq!(map.len(), 32, "{map:?}");
            assert!(
                map.iter()
                    .all(|extent| extent["length"].as_u64() == Some(if extent["type"] == 0 { MIB } else { 3 * MIB }))
            );
            assert_eq!(map.iter().filter(|extent| extent["type"] == 3).count(), 16);
        });
    }
}

#[test]
fn qemu_reads_writes_zeroes_trims_and_flushes() {
    for kind in ENGINES {
        served(kind, |uri, _| async move {
            let io = |commands: &'static [&'static str]| {
                let mut argv = vec!["qemu-io", "-f", "raw"];
                commands.iter().for_each(|command| argv.extend(["-c", command]));
                let uri = uri.clone();
                async move { does(&[&argv[..], &[&uri]].concat()).await }
            };
            let told = io(&[
                "write -P 0xa5 0 1M",
                "write -f -P 0x5a 1M 64k",
                "write -z 512 8192",
                "write -z -u 2M 1M",
                "discard 512k 256k",
                "aio_write -P 7 8M 4k",
                "aio_write -P 8 9M 4k",
                "aio_flush",
                "flush",
                "read -P 0xa5 0 512",
                "read -P 0 512 8192",
                "read -P 0xa5 8704 496k",
                "read -P 0 512k 256k",
                "read -P 0x5a 1M 64k",
                "read -P 7 8M 4k",
                "read -P 8 9M 4k",
                "read -P 0 32M 32M",
            ])
            .await;
            assert!(!told.contains("verification failed") && !told.to_lowercase().contains("error"), "{told}");
            let map = does(&["qemu-img", "map", "--output=json", "-f", "raw", &uri]).await;
            let map: Value = serde_json::from_str(&map).unwrap();
            let holes: u64 = map
                .as_array()
                .unwrap()
                .iter()
                .filter(|it| it["data"] == false)
                .map(|it| it["length"].as_u64().unwrap())
                .sum();
            assert!(holes > 60 * MIB, "{map}");
        });
    }
}

#[test]
fn qemu_hears_that_the_pool_is_full_and_goes_on_when_there_is_room() {
    on_a_small_file_system(4 * MIB, |path| {
        run(async {
            let pool = Pool::open(path).unwrap();
            pool.create("v", SIZE).unwrap();
            let disk = pool.open_replica("v", SIZE, EngineKind::Best).await.unwrap();
            let (socket, stop) = (path.join("socket"), CancellationToken::new());
            let uri = format!("nbd+unix:///?socket={}", socket.display());
            let serving = serve_each(UnixListener::bind(&socket).unwrap(), disk, stop.clone());
            let story = async {
                let io = ["qemu-io", "-f", "raw", "-c", "write -P 1 0 2M", "-c", "write -P 2 2M 8M", "-c"];
                let told = program(&[&io[..], &["read -P 1 0 2M", &uri]].concat()).await;
                let told = String::from_utf8_lossy(&[told.stdout, told.stderr].concat()).into_owned();
                assert!(told.contains("write failed: No space left on device"), "{told}");
                assert!(told.contains("read 2097152/2097152") && !told.contains("verification"), "{told}");

                let again = ["qemu-io", "-f", "raw", "-c", "discard 2M 8M", "-c", "write -P 3 2M 1M", "-c"];
                does(&[&again[..], &["read -P 3 2M 1M", &uri]].concat()).await;
                stop.cancel();
            };
            tokio::join!(story, serving);
        });
    });
}

#[test]
fn qemu_img_converts_into_a_volume_and_finds_it_equal() {
    served(EngineKind::Best, |uri, place| async move {
        let (raw, cow) = (place.join("raw"), place.join("cow"));
        // Every other MiB.
        let bytes: Vec<u8> = (0..4).flat_map(|_| [pattern(MIB, 247), vec![0; 1 << 20]].concat()).collect();
        fs::write(&raw, bytes).unwrap();
        let (raw, cow) = (raw.to_str().unwrap(), cow.to_str().unwrap());
        does(&["qemu-img", "resize", "-q", "-f", "raw", raw, &SIZE.to_string()]).await;
        does(&["qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, cow]).await;
        does(&["qemu-img", "convert", "-n", "-f", "qcow2", "-O", "raw", cow, &uri]).await;
        // One client at a time, so that the comparison is with the file.
        does(&["qemu-img", "compare", "-f", "qcow2", "-F", "raw", cow, &uri]).await;
        assert!(fs::metadata(place.join("v/data")).unwrap().blocks() * 512 <= 5 * MIB);
    });
}

#[test]
fn fio_finds_everything_it_wrote() {
    for kind in ENGINES {
        served(kind, |uri, _| async move {
            let uri = format!("--uri={uri}");
            let common = [
                "fio",
                "--name=verify",
                "--ioengine=nbd",
                &uri,
                "--iodepth=16",
                "--verify=crc32c",
                "--verify_fatal=1",
                "--verify_state_save=0",
                "--randrepeat=1",
                "--output-format=terse",
            ];
            does(
                &[&common[..], &["--size=16M", "--rw=randwrite", "--bs=4k", "--fsync=64", "--verify_backlog=256"]]
                    .concat(),
            )
            .await;
            does(
                &[
                    &common[..],
                    &["--size=32M", "--rw=randwrite", "--bsrange=512-256k", "--bs_unaligned=0", "--blockalign=512"],
                ]
                .concat(),
            )
            .await;
            does(&[&common[..], &["--size=64M", "--rw=write", "--bs=1M"]].concat()).await;
        });
    }
}
