//! Text that came from outside, made fit to be kept and to be shown.

use alloc::string::String;

use crate::limits::TEXT_MAX;

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

#[cfg(test)]
mod tests {
    use super::clip;

    #[test]
    fn a_letter_is_never_cut_in_half() {
        assert_eq!(clip("naïve", 3), "na");
        assert_eq!(clip("naïve", 4), "naï");
    }

    #[test]
    fn an_escape_sequence_loses_its_escape() {
        assert_eq!(clip("\u{1b}[2Jgone\n", 40), " [2Jgone ");
    }
}
