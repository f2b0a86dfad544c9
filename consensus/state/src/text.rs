//! Text that came from outside, made fit to be kept and to be shown.

use alloc::{
    format,
    string::{String, ToString},
};

use crate::limits::TEXT_MAX;

/// Names of a list that are said one by one.
const NAMED_MAX: usize = 3;

/// At most [`TEXT_MAX`] bytes of it, on one line and without control characters: what a peer reports ends up on terminals.
#[must_use]
pub fn plain(text: &str) -> String {
    clip(text, TEXT_MAX)
}

/// At most `max` bytes of it, without control characters.
pub(crate) fn clip(text: &str, max: usize) -> String {
    let mut kept = String::new();
    for letter in text.chars() {
        let letter = if letter.is_control() { ' ' } else { letter };
        if kept.len() + letter.len_utf8() > max {
            break;
        }
        kept.push(letter);
    }
    kept
}

/// So many bytes, in the largest unit in which they are a whole number.
pub(crate) fn size(bytes: u64) -> String {
    let units = [(40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")];
    let whole = units.into_iter().find(|(shift, _)| bytes > 0 && bytes.trailing_zeros() >= *shift);
    whole.map_or_else(|| format!("{bytes} bytes"), |(shift, unit)| format!("{} {unit}", bytes >> shift))
}

/// `a`, `a and b`, `a, b, c and 7 more`; nothing of nothing.
pub(crate) fn list<'a>(names: impl IntoIterator<Item = &'a str>) -> String {
    let mut names = names.into_iter();
    let mut text = String::new();
    let mut next = names.next();
    let mut said = 0;
    while let Some(name) = next {
        next = names.next();
        match (said, &next) {
            (0, _) => text.push_str(name),
            (NAMED_MAX, _) => {
                let more = 1 + usize::from(next.is_some()) + names.count();
                return text + " and " + &more.to_string() + " more";
            }
            (_, None) => text = text + " and " + name,
            (_, Some(_)) => text = text + ", " + name,
        }
        said += 1;
    }
    text
}

#[cfg(test)]
mod tests {
    use super::{clip, list, size};

    #[test]
    fn a_letter_is_never_cut_in_half() {
        assert_eq!(clip("naïve", 3), "na");
        assert_eq!(clip("naïve", 4), "naï");
    }

    #[test]
    fn an_escape_sequence_loses_its_escape() {
        assert_eq!(clip("\u{1b}[2Jgone\n", 40), " [2Jgone ");
    }

    #[test]
    fn sizes_are_said_in_whole_units() {
        let said =
            [(10 << 30, "10 GiB"), (1536 << 20, "1536 MiB"), (4096, "4 KiB"), (1 << 40, "1 TiB"), (513, "513 bytes")];
        said.into_iter().for_each(|(bytes, text)| assert_eq!(size(bytes), text));
        assert_eq!(size(0), "0 bytes");
    }

    #[test]
    fn long_lists_are_cut_short() {
        let said = [
            ("", ""),
            ("a", "a"),
            ("a b", "a and b"),
            ("a b c", "a, b and c"),
            ("a b c d", "a, b, c and 1 more"),
            ("a b c d e f", "a, b, c and 3 more"),
        ];
        said.into_iter().for_each(|(names, text)| assert_eq!(list(names.split_whitespace()), text));
    }
}
