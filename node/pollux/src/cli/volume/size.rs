//! Sizes of volumes as people give them.

/// An amount of bytes: `512M`, `512MiB`, `10G`, `1.5T`; always with a unit, for a bare number could be anything.
pub(super) fn size(text: &str) -> Result<u64, String> {
    let wrong = || format!("{text} is no size; write it as 512M, 10G or 2T (powers of 1024)");
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let shift = match unit.trim() {
        "K" | "KiB" => 10,
        "M" | "MiB" => 20,
        "G" | "GiB" => 30,
        "T" | "TiB" => 40,
        _ => return Err(wrong()),
    };
    let (whole, part) = number.split_once('.').unwrap_or((number, "0"));
    let (whole, scale): (u64, u32) =
        (whole.parse().map_err(|_| wrong())?, u32::try_from(part.len()).map_err(|_| wrong())?);
    let part: u64 = part.parse().map_err(|_| wrong())?;
    let scale = 10u64.checked_pow(scale).ok_or_else(wrong)?;
    let bytes =
        whole.checked_mul(1 << shift).and_then(|whole| whole.checked_add(part.checked_mul(1 << shift)? / scale));
    bytes.ok_or_else(|| format!("{text} is more than there is"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_size_has_a_unit() {
        let sizes = ["512M", "512MiB", "10G", "1.5T", "4K", "0.5 G"].map(size);
        let expected = [512 << 20, 512 << 20, 10 << 30, 3 << 39, 4 << 10, 1 << 29];
        assert_eq!(sizes, expected.map(Ok));
        for wrong in ["10", "", "G", "-1G", "10GB", "1.G.5", "ten G", ".", "99999999999T", "1.99999999999999999999G"] {
            assert!(size(wrong).is_err(), "{wrong} was taken");
        }
    }
}
