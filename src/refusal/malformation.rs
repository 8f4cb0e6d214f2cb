//! Faults of a request's bytes (RFC 9112).

/// The fault of a request's bytes. Sections without an RFC number are of RFC 9112.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Malformation {
    /// A CR without LF, or an LF without CR (section 2.2).
    #[error("a line of the request does not end with CR LF")]
    LineEnding,
    /// NUL or another control byte.
    #[error("the request has a control byte where it is not allowed")]
    ControlByte,
    /// Not a method, a target and a version with one space between (section 3).
    #[error("the request line is not a method, a target and a version with one space between them")]
    RequestLine,
    /// The method has lower-case letters. All registered methods are in upper case (RFC 9110,
    /// section 9.1).
    #[error("the method is not in upper case")]
    Method,
    /// The target has none of the forms of section 3.2.
    #[error("the target is neither a path nor a URL")]
    Target,
    /// Not HTTP/1.1 or HTTP/1.0.
    #[error("the version is neither HTTP/1.1 nor HTTP/1.0")]
    Version,
    /// The name is not a token, or there is a byte between the name and its colon (section 5.1).
    #[error("a field's name is not a word with a colon right behind it")]
    FieldName,
    /// White space around the value, which HTTP/2 reads as a part of it (RFC 9113, section 8.2.1).
    #[error("a field's value begins or ends with white space")]
    FieldValue,
    /// A field that HTTP/2 forbids (RFC 9113, section 8.2.2).
    #[error("the request has a field that belongs to one HTTP/1.1 connection")]
    ConnectionField,
    /// Not one decimal number (RFC 9110, section 7.6.2).
    #[error("the Max-Forwards is not one number")]
    MaxForwards,
    /// A field that is continued on the next line (section 5.2).
    #[error("a field is continued on another line")]
    Folded,
    /// Not one plain decimal number (section 6.3).
    #[error("the Content-Length is not one plain number, given once")]
    ContentLength,
    /// A coding other than `chunked`, more than one coding, or any coding on HTTP/1.0 (section
    /// 6.1).
    #[error("the Transfer-Encoding is not `chunked` alone")]
    TransferEncoding,
    /// Both ways of framing at once (section 6.3).
    #[error("the request has a Content-Length and a Transfer-Encoding")]
    LengthAndCoding,
    /// Not a plain hexadecimal number of at most 32 bits (section 7.1).
    #[error("a chunk's size is not a plain hexadecimal number")]
    ChunkSize,
    /// The extensions of a chunk are too long or not text (section 7.1.1).
    #[error("the chunk extensions are too long or not text")]
    ChunkExtension,
    /// A chunk does not end where its size requires.
    #[error("a chunk is longer than its size")]
    ChunkEnd,
    /// A field that is not allowed in a trailer section, or too many fields (section 7.1.2).
    #[error("the trailer section has a field that is not allowed there, or is too long")]
    Trailer,
}
