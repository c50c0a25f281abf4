//! The tools that people use, against a raw file on our export: what they see, copy, compare and verify.

#![allow(clippy::unwrap_used, reason = "helpers of a test state their expectations with unwrap")]

#[path = "support/certificates.rs"]
mod certificates;
mod support;

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use certificates::Certificates;
use secondsite_disk::{Access, FileDevice};
use secondsite_nbd::{DeviceExport, Listen, NbdServer, ServerOptions};
use support::*;

const MIB: usize = 1 << 20;

/// A served image: 4 MiB of hole, 3 MiB of data, 9 MiB of hole.
struct Image {
    folder: tempfile::TempDir,
    server: NbdServer,
    content: Vec<u8>,
}

impl Image {
    fn new() -> Self {
        Self::with_options(|options| options)
    }

    fn with_options(change: impl FnOnce(ServerOptions) -> ServerOptions) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut content = vec![0; 16 * MIB];
        content[4 * MIB..7 * MIB].copy_from_slice(&SplitMix(7).bytes(3 * MIB));
        let path = folder.path().join("disk.img");
        let file = FileDevice::create(&path, content.len() as u64).unwrap();
        secondsite_disk::BlockDevice::write_at(&file, 4 << 20, &content[4 * MIB..7 * MIB]).unwrap();
        let device = Arc::new(FileDevice::open(&path, Access::Exclusive).unwrap());
        let export = DeviceExport::new(device).with_fast_zeroing();
        let listen = Listen::Unix(folder.path().join("socket"));
        let options = ServerOptions::new(listen).with_export("disk", Arc::new(export));
        let server = NbdServer::start(change(options)).unwrap();
        Self { folder, server, content }
    }

    fn uri(&self) -> String {
        format!("nbd+unix:///disk?socket={}", self.path("socket").display())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn bytes(&self) -> Vec<u8> {
        std::fs::read(self.path("disk.img")).unwrap()
    }
}

/// Runs a tool that must succeed; its output. `None`, noted as a skip, when it is not installed.
fn run(test: &str, tool: &str, arguments: &[&str]) -> Option<String> {
    let output = match Command::new(tool).args(arguments).stdin(Stdio::null()).output() {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            skip(test, &format!("{tool} is not installed"));
            return None;
        }
        output => output.unwrap(),
    };
    let (text, complaint) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{tool} {arguments:?}: {}\n{text}\n{complaint}", output.status);
    Some(text.into_owned())
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn nbdinfo_lists_the_export_and_maps_it() {
    let (test, image) = ("nbdinfo_lists_the_export_and_maps_it", Image::new());
    let Some(list) = run(test, "nbdinfo", &["--list", &image.uri()]) else { return };
    for line in [
        "export=\"disk\"",
        "export-size: 16777216",
        "base:allocation",
        "can_multi_conn: true",
        "can_fua: true",
        "block_size_minimum: 512",
        "is_read_only: false",
    ] {
        assert!(list.contains(line), "{line} in\n{list}");
    }
    let map = run(test, "nbdinfo", &["--map", "--totals", &image.uri()]).unwrap_or_default();
    let totals: Vec<Vec<&str>> = map.lines().map(|line| line.split_whitespace().collect()).collect();
    assert!(totals.iter().any(|total| total[0] == "3145728" && total.last() == Some(&"data")), "{map}");
    assert!(totals.iter().any(|total| total[0] == "13631488" && total.last() == Some(&"hole,zero")), "{map}");
}

#[test]
fn nbdcopy_copies_out_and_in_over_several_connections() {
    let (test, image) = ("nbdcopy_copies_out_and_in", Image::new());
    let (copy, source) = (image.path("copy.img"), image.path("source.img"));
    let options = ["--connections=4", "--requests=16"];
    let Some(_) = run(test, "nbdcopy", &[options[0], options[1], &image.uri(), text(&copy)]) else { return };
    assert!(std::fs::read(&copy).unwrap() == image.content);
    let mut other = SplitMix(9).bytes(16 * MIB);
    other[MIB..5 * MIB].fill(0);
    std::fs::write(&source, &other).unwrap();
    run(test, "nbdcopy", &[options[0], options[1], "--flush", text(&source), &image.uri()]);
    assert!(image.bytes() == other);
}

#[test]
fn qemu_img_informs_maps_converts_and_compares() {
    let (test, image) = ("qemu_img_informs_maps_converts_and_compares", Image::new());
    let uri = image.uri();
    let Some(info) = run(test, "qemu-img", &["info", "--output=json", &uri]) else { return };
    assert!(info.contains("\"virtual-size\": 16777216"), "{info}");
    let map = run(test, "qemu-img", &["map", "--output=json", &uri]).unwrap_or_default();
    assert!(
        map.contains("\"start\": 4194304, \"length\": 3145728") && map.matches("\"data\": true").count() == 1,
        "{map}"
    );
    let copy = image.path("copy.qcow2");
    run(test, "qemu-img", &["convert", "-f", "raw", "-O", "qcow2", &uri, text(&copy)]);
    run(test, "qemu-img", &["compare", "-f", "raw", "-F", "qcow2", &uri, text(&copy)]);
    let raw = image.path("raw.img");
    std::fs::write(&raw, SplitMix(11).bytes(16 * MIB)).unwrap();
    run(test, "qemu-img", &["convert", "-n", "-f", "raw", "-O", "raw", text(&raw), &uri]);
    run(test, "qemu-img", &["compare", "-f", "raw", "-F", "raw", text(&raw), &uri]);
    assert!(image.bytes() == std::fs::read(&raw).unwrap());
}

#[test]
fn qemu_io_writes_zeroes_discards_flushes_and_verifies() {
    let (test, image) = ("qemu_io_writes_zeroes_discards_flushes_and_verifies", Image::new());
    let uri = image.uri();
    let script = [
        "write -P 0xa5 1M 64k",
        "write -f -P 0x5a 1088k 4k",
        "write -z 1040k 8k",
        "write -z -u 4M 1M",
        "discard 5M 512k",
        "aio_write -P 1 8M 2M",
        "aio_write -P 2 10M 2M",
        "aio_flush",
        "flush",
        "read -P 0xa5 1M 16k",
        "read -P 0 1040k 8k",
        "read -P 0x5a 1088k 4k",
        "read -P 0 4M 1536k",
        "read -P 1 8M 2M",
        "read -P 2 10M 2M",
    ];
    let arguments: Vec<&str> = ["-f", "raw", "-d", "unmap"]
        .into_iter()
        .chain(script.iter().flat_map(|line| ["-c", line]))
        .chain([&*uri])
        .collect();
    let Some(output) = run(test, "qemu-io", &arguments) else { return };
    assert!(!output.contains("failed") && !output.contains("error"), "{output}");
    let bytes = image.bytes();
    assert!(bytes[MIB..MIB + 16_384].iter().all(|byte| *byte == 0xa5));
    assert!(bytes[4 * MIB..5 * MIB + 524_288].iter().all(|byte| *byte == 0));
    assert!(bytes[5 * MIB + 524_288..7 * MIB] == image.content[5 * MIB + 524_288..7 * MIB]);
    let (wrote, rest) = bytes[8 * MIB..12 * MIB].split_at(2 * MIB);
    assert!(wrote.iter().all(|byte| *byte == 1) && rest.iter().all(|byte| *byte == 2));
}

#[test]
fn a_qemu_that_opens_the_served_image_itself_is_refused() {
    let (test, image) = ("a_qemu_that_opens_the_served_image_itself_is_refused", Image::new());
    let disk = image.path("disk.img");
    let output = Command::new("qemu-io").args(["-f", "raw", "-c", "read 0 512", text(&disk)]).output();
    let Ok(output) = output else { return skip(test, "qemu-io is not installed") };
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && complaint.contains("lock"), "{complaint}");
}

#[test]
fn fio_writes_at_random_and_verifies_every_block() {
    let (test, image) = ("fio_writes_at_random_and_verifies_every_block", Image::new());
    let uri = format!("--uri={}", image.uri());
    for (bs, depth) in [("--bs=4k", "--iodepth=32"), ("--bsrange=512-256k", "--iodepth=8")] {
        let arguments = [
            "--name=verify",
            "--ioengine=nbd",
            &uri,
            "--rw=randwrite",
            bs,
            depth,
            "--size=16M",
            "--verify=crc32c",
            "--blockalign=512",
            "--fsync=64",
            "--randseed=42",
            "--verify_state_save=0",
        ];
        let Some(output) = run(test, "fio", &arguments) else { return };
        assert!(output.contains("err= 0"), "{output}");
    }
    let counters = image.server.counters();
    assert!(counters.written_bytes >= 32 << 20 && counters.error_count == 0, "{counters:?}");
}

/// A child that is killed when the test ends, by its id.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn nbdkit_passes_our_export_on() {
    let (test, image) = ("nbdkit_passes_our_export_on", Image::new());
    let (proxy, uri) = (image.path("proxy"), format!("uri={}", image.uri()));
    let arguments = ["-f", "-U", text(&proxy), "nbd", &uri];
    let spawned = Command::new("nbdkit").args(arguments).stdin(Stdio::null()).spawn();
    let Ok(child) = spawned else { return skip(test, "nbdkit is not installed") };
    let _running = Running(child);
    eventually("the proxy listens", || std::os::unix::net::UnixStream::connect(&proxy).is_ok());
    let (through, copy) = (format!("nbd+unix:///?socket={}", proxy.display()), image.path("copy.img"));
    let Some(_) = run(test, "nbdcopy", &[&through, text(&copy)]) else { return };
    assert!(std::fs::read(&copy).unwrap() == image.content);
    let other = SplitMix(13).bytes(16 * MIB);
    std::fs::write(&copy, &other).unwrap();
    run(test, "nbdcopy", &["--flush", text(&copy), &through]);
    assert!(image.bytes() == other);
}

#[test]
fn libnbd_and_qemu_come_under_tls_with_their_certificates() {
    let test = "libnbd_and_qemu_come_under_tls_with_their_certificates";
    let certificates = Certificates::new();
    let image = Image::with_options(|mut options| {
        options.tls = Some(certificates.options(true, true));
        options.listen = Listen::Tcp("127.0.0.1:0".parse().unwrap());
        options
    });
    let Listen::Tcp(address) = image.server.address() else { panic!("no address") };
    let copy = image.path("copy.img");
    let uri = format!(
        "nbds://localhost:{}/disk?tls-certificates={}",
        address.port(),
        certificates.folder().display()
    );
    if run(test, "nbdcopy", &[&uri, text(&copy)]).is_some() {
        assert!(std::fs::read(&copy).unwrap() == image.content);
    }
    let credentials =
        format!("tls-creds-x509,id=t,endpoint=client,verify-peer=on,dir={}", certificates.folder().display());
    let options = format!("driver=nbd,host=127.0.0.1,port={},export=disk,tls-creds=t", address.port());
    let raw = image.path("raw.img");
    std::fs::write(&raw, &image.content).unwrap();
    let arguments = [
        "compare",
        "--object",
        &credentials,
        "--image-opts",
        &options,
        &format!("driver=raw,file.filename={}", raw.display()),
    ];
    run(test, "qemu-img", &arguments);
    let plain = format!("nbd://127.0.0.1:{}/disk", address.port());
    if let Ok(output) = Command::new("nbdinfo").arg(&plain).output() {
        assert!(!output.status.success(), "served without TLS: {}", String::from_utf8_lossy(&output.stdout));
    }
}
