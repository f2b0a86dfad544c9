//! What the fuzzer reaches of this package; there only where `cfg(fuzzing)` is.

/// Reads one line of QEMU's control protocol.
pub fn qmp_line(line: &[u8]) {
    crate::qmp::read_line(line);
}
