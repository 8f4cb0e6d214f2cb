//! Classes of bytes, and the faults of a byte outside its class.

use crate::gate::Malformation;

/// Classes of bytes (RFC 9110, section 5.6.2; RFC 3986, section 2). Each class is a bit.
pub(super) const TOKEN: u8 = 1;
pub(super) const METHOD: u8 = 2;
pub(super) const TARGET: u8 = 4;
pub(super) const VALUE: u8 = 8;
pub(super) const VERSION: u8 = 16;

/// The classes of each byte.
pub(super) const CLASSES: [u8; 256] = {
    let mut classes = [0; 256];
    let mut at = 0;
    while at < 256 {
        let byte = at as u8;
        let mark = matches!(
            byte,
            b'!' | b'#'
                | b'$'
                | b'%'
                | b'&'
                | b'\''
                | b'*'
                | b'+'
                | b'-'
                | b'.'
                | b'^'
                | b'_'
                | b'`'
                | b'|'
                | b'~'
        );
        if byte.is_ascii_alphanumeric() || mark {
            classes[at] |= TOKEN;
        }
        // Methods are case-sensitive, but some servers ignore the case: a route on POST would miss
        // a `post` that such a server executes as POST.
        if byte.is_ascii_uppercase() || byte.is_ascii_digit() || mark {
            classes[at] |= METHOD;
        }
        // A fragment has no meaning to a server, and some servers read a backslash as a slash.
        if byte.is_ascii_graphic() && !matches!(byte, b'#' | b'\\' | b'<' | b'>' | b'`') {
            classes[at] |= TARGET;
        }
        if matches!(byte, b'\t' | b' '..=b'~' | 0x80..) {
            classes[at] |= VALUE;
        }
        if byte.is_ascii_graphic() {
            classes[at] |= VERSION;
        }
        at += 1;
    }
    classes
};

/// Returns how many bytes from the start are of a class.
pub(super) fn run(bytes: &[u8], class: u8) -> usize {
    bytes.iter().position(|byte| CLASSES[usize::from(*byte)] & class == 0).unwrap_or(bytes.len())
}

/// Returns how many bytes from the start may be in a value. Most bytes of a head are in values. So
/// this checks blocks of bytes, and the compiler turns each block into one comparison.
pub(super) fn run_of_value(bytes: &[u8]) -> usize {
    const BLOCK: usize = 16;
    let plain = |block: &&[u8]| {
        block.iter().fold(true, |plain, byte| plain & (*byte >= b' ') & (*byte != 0x7f))
    };
    let blocks = bytes.chunks_exact(BLOCK).take_while(plain).count();
    let rest = blocks * BLOCK;
    rest + run(&bytes[rest..], VALUE)
}

/// Returns the fault of a byte that is not allowed at its position. The fault of an ordinary byte
/// is `otherwise`.
pub(super) fn stray(byte: u8, otherwise: Malformation) -> Malformation {
    match byte {
        b'\r' | b'\n' => Malformation::LineEnding,
        b'\t' => otherwise,
        byte if byte.is_ascii_control() => Malformation::ControlByte,
        _ => otherwise,
    }
}

/// Returns an error unless the byte is the expected one.
pub(super) fn expect(found: u8, expected: u8, otherwise: Malformation) -> Result<(), Malformation> {
    if found == expected { Ok(()) } else { Err(stray(found, otherwise)) }
}
