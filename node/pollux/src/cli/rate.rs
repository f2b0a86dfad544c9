//! Rates as people give them: bytes or bits per second, always with a unit, for a bare number could be either.

use bytesize::ByteSize;

/// `100MB`, `1GiB`, `800Mbit` or `10Gbit`, each optionally with `/s`: bytes per second.
pub(crate) fn rate(text: &str) -> Result<u64, String> {
    let help = || "give a rate with its unit, such as 100MB or 1Gbit (per second)".to_owned();
    let plain = text.trim().trim_end_matches("/s").trim_end_matches("ps").trim();
    if plain.chars().all(|letter| letter.is_ascii_digit() || letter == '.') {
        return Err(help());
    }
    let rate = match plain.strip_suffix("bit") {
        Some(bits) => bits.parse::<BitPrefix>().map_err(|()| help())?.0 / 8,
        None => plain.parse::<ByteSize>().map_err(|_| help())?.as_u64(),
    };
    if rate == 0 { Err(help()) } else { Ok(rate) }
}

/// A number of bits with its prefix, which a byte size of the same prefix has in bytes.
struct BitPrefix(u64);

impl std::str::FromStr for BitPrefix {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let unit =
            if text.ends_with(|letter: char| letter.is_ascii_alphabetic()) { format!("{text}B") } else { text.into() };
        unit.parse::<ByteSize>().map(|size| Self(size.as_u64())).map_err(|_| ())
    }
}

/// For people: in the unit that suits it.
pub(crate) fn rate_text(bytes_per_s: u64) -> String {
    format!("{}/s", super::output::bytes(bytes_per_s))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_and_bits_are_told_apart() {
        let rates = ["100MB", "100 MB/s", "1GiB", "800Mbit", "10Gbit/s", "1.5GB", "500kB"].map(rate);
        let expected = [100_000_000, 100_000_000, 1 << 30, 100_000_000, 1_250_000_000, 1_500_000_000, 500_000];
        assert_eq!(rates, expected.map(Ok));
    }

    #[test]
    fn what_could_be_meant_in_two_ways_is_refused() {
        for text in ["100", "", "fast", "10 apples", "0MB", "-5MB"] {
            assert!(rate(text).is_err_and(|why| why.contains("unit")), "{text:?}");
        }
    }
}
