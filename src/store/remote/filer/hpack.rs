//! Header fields of HTTP/2 (RFC 7541), as far as a client needs them that sends few and allows the
//! other side no table: what it sends is literal, and what comes is looked through for two names.
//! Pure.

/// Appends a field, literal and never indexed (RFC 7541, 6.2.3).
pub fn put(block: &mut Vec<u8>, name: &str, value: &str) {
    block.push(0x10);
    for text in [name, value] {
        put_length(block, text.len());
        block.extend_from_slice(text.as_bytes());
    }
}

/// The fields of a block that are not of the static table's names; of those only the order of the
/// bytes matters here. None: the block is damaged, or uses a table that it was not given.
pub fn fields(mut block: &[u8]) -> Option<Vec<(Vec<u8>, Vec<u8>)>> {
    let mut fields = Vec::new();
    while let Some(&first) = block.first() {
        match first {
            // Indexed, name and value.
            0x80.. => {
                static_index(integer(&mut block, 7)?)?;
            }
            // A new size for the table, which stays empty.
            0x20..=0x3f => {
                (integer(&mut block, 5)? == 0).then_some(())?;
            }
            _ => {
                let index = integer(&mut block, if first >= 0x40 { 6 } else { 4 })?;
                let name = match index {
                    0 => string(&mut block)?,
                    index => {
                        static_index(index)?;
                        Vec::new()
                    }
                };
                fields.push((name, string(&mut block)?));
            }
        }
    }
    Some(fields)
}

/// The static table has 61 entries; those behind it would be in the dynamic one.
fn static_index(index: usize) -> Option<()> {
    (1..=61).contains(&index).then_some(())
}

fn put_length(block: &mut Vec<u8>, length: usize) {
    // Without Huffman coding the first bit is 0, and the length has 7 bits or goes on (5.1).
    if length < 0x7f {
        block.push(length as u8);
        return;
    }
    block.push(0x7f);
    let mut rest = length - 0x7f;
    while rest >= 0x80 {
        block.push(rest as u8 | 0x80);
        rest >>= 7;
    }
    block.push(rest as u8);
}

fn integer(block: &mut &[u8], bits: u32) -> Option<usize> {
    let (first, rest) = block.split_first()?;
    *block = rest;
    let most = (1usize << bits) - 1;
    let mut value = usize::from(*first) & most;
    if value < most {
        return Some(value);
    }
    for shift in [0, 7, 14, 21] {
        let (byte, rest) = block.split_first()?;
        *block = rest;
        value += usize::from(byte & 0x7f) << shift;
        if *byte < 0x80 {
            return Some(value);
        }
    }
    None
}

fn string(block: &mut &[u8]) -> Option<Vec<u8>> {
    let is_huffman = *block.first()? >= 0x80;
    let length = integer(block, 7)?;
    let (text, rest) = block.split_at_checked(length)?;
    *block = rest;
    if is_huffman { huffman(text) } else { Some(text.to_vec()) }
}

/// Length of each symbol's code, from 5 bits (`a`) to 30 (`z`); the last symbol ends a text (RFC
/// 7541, appendix B). The code is canonical: codes of one length follow each other by symbol, those
/// of the next length go on where they ended. So the lengths say it all.
const CODE_LENGTHS: &[u8; 257] =
    b"isxxxxxxxtzxxzxxxxxxxxzxxxxxxxxxbffhibdgffdgdbbbaaabbbbbbbcdkbhf\
    ibccccccccccccccccccccccdcdioijbkabababbbaccbbbabcbaabccccckgjix\
    prpprrrsrssssststtrstssssqrsrsstrqprrssqsrrtqrssqqrqsrssprrrsrrs\
    vvporsruvvvwwvtuoqvwwvwtqqvvxwwwptpqrqqsrruuttvsvwvvwwwwwxwwwwwvz";

fn huffman(text: &[u8]) -> Option<Vec<u8>> {
    let length_of = |symbol: usize| u32::from(CODE_LENGTHS[symbol] - b'a') + 5;
    let mut symbols: Vec<usize> = (0..CODE_LENGTHS.len()).collect();
    symbols.sort_by_key(|symbol| (length_of(*symbol), *symbol));

    let bit = |at: usize| u32::from(text[at / 8] >> (7 - at % 8) & 1);
    let (mut decoded, mut at) = (Vec::new(), 0);
    'symbols: while at < text.len() * 8 {
        let (mut code, mut length, mut first) = (0, 0, 0u32);
        for symbol in &symbols {
            let wanted = length_of(*symbol);
            while length < wanted {
                if at + length as usize >= text.len() * 8 {
                    // What is left is padding: fewer than 8 ones.
                    let is_padding = length < 8 && code == (1 << length) - 1;
                    return is_padding.then_some(decoded);
                }
                code = code << 1 | bit(at + length as usize);
                first <<= 1;
                length += 1;
            }
            if code == first {
                decoded.push(u8::try_from(*symbol).ok()?);
                at += length as usize;
                continue 'symbols;
            }
            first += 1;
        }
        return None;
    }
    Some(decoded)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn bytes(hex: &str) -> Vec<u8> {
        let hex = hex.replace(' ', "");
        (0..hex.len())
            .step_by(2)
            .map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap())
            .collect()
    }

    #[test]
    fn huffman_as_in_rfc_7541_appendix_c() {
        for (text, code) in [
            ("www.example.com", "f1e3 c2e5 f23a 6ba0 ab90 f4ff"),
            ("no-cache", "a8eb 1064 9cbf"),
            ("custom-key", "25a8 49e9 5ba9 7d7f"),
            ("custom-value", "25a8 49e9 5bb8 e8b4 bf"),
            (
                "Mon, 21 Oct 2013 20:13:21 GMT",
                "d07a be94 1054 d444 a820 0595 040b 8166 e082 a62d 1bff",
            ),
            (
                "foo=ASDJKHQKBZXOQWEOPIUAXQWEOIU; max-age=3600; version=1",
                "94e7 821d d7f2 e6c7 b335 dfdf cd5b 3960 d5af 2708 7f36 72c1 ab27 0fb5 291f 9587 3160 65c0 03ed 4ee5 b106 3d50 07",
            ),
        ] {
            assert_eq!(huffman(&bytes(code)).as_deref(), Some(text.as_bytes()), "{text}");
        }
        // A code that is cut off, and padding that is too long.
        assert_eq!((huffman(&[0x00, 0xfe]), huffman(&[0xff])), (None, None));
    }

    #[test]
    fn blocks() {
        let mut block = bytes("20 88");
        put(&mut block, "grpc-status", "14");
        put(&mut block, "grpc-message", &"x".repeat(300));
        // content-type by its place in the static table, with a value of its own.
        block.extend(bytes("0f 10 01 78"));
        let fields = fields(&block).unwrap();
        assert_eq!(fields[0], (b"grpc-status".to_vec(), b"14".to_vec()));
        assert_eq!((fields[1].1.len(), &fields[2]), (300, &(vec![], b"x".to_vec())));
        for bad in ["be", "00 05 61", "3f 01", "7e 01 78"] {
            assert_eq!(super::fields(&bytes(bad)), None, "{bad}");
        }
    }

    proptest! {
        #[test]
        fn no_block_is_too_strange(block in prop::collection::vec(any::<u8>(), 0..100)) {
            let _ = fields(&block);
        }
    }
}
