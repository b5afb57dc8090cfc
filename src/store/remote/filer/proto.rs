//! The few messages of SeaweedFS's `filer.proto` (package `filer_pb`) that the store sends and
//! reads, in protocol buffers' wire format (protobuf.dev/programming-guides/encoding). Pure.

/// A chunk of a file: where its bytes are, and where in the file they belong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chunk {
    /// Volume, key and cookie: `3,01637037d6`.
    pub file_id: String,
    /// From the file's first byte on.
    pub offset: u64,
    /// Bytes.
    pub size: u64,
    /// When it was written, in nanoseconds since 1970: of two that overlap the later one counts.
    pub modified_ns: u64,
}

/// A file with its chunks, to be made or replaced.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct File<'a> {
    /// Its folder, from the filer's root on.
    pub directory: &'a str,
    /// Its name in it.
    pub name: &'a str,
    /// Bytes.
    pub size: u64,
    /// Seconds since 1970.
    pub modified: u64,
    /// Its media type.
    pub mime: &'a str,
    /// Its bytes.
    pub chunks: &'a [Chunk],
}

/// Where a new chunk goes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Assignment {
    /// What the chunk is called.
    pub file_id: String,
    /// A token for this one write; empty: none is asked for.
    pub token: String,
    /// `host:port` of the volume server.
    pub server: String,
    /// The same, as it is reached from elsewhere.
    pub public_server: String,
    /// Whether the rules of the path want each write synced.
    pub is_synced: bool,
}

/// `AssignVolumeRequest`, for a chunk of `size` bytes that will belong to a file of this path.
pub fn assign_request(path: &str, size: u64) -> Vec<u8> {
    let mut message = Message::default();
    message.number(1, 1);
    message.bytes(6, path.as_bytes());
    message.number(10, size);
    message.0
}

/// `AssignVolumeResponse`.
///
/// # Errors
/// What the filer says is wrong, or that its answer is none.
pub fn assignment(bytes: &[u8]) -> Result<Assignment, String> {
    let mut found = Assignment::default();
    let mut error = String::new();
    for field in Fields(bytes) {
        match field? {
            (1, Value::Bytes(id)) => found.file_id = text(id)?,
            (5, Value::Bytes(token)) => found.token = text(token)?,
            (8, Value::Bytes(said)) => error = text(said)?,
            (9, Value::Bytes(location)) => {
                for field in Fields(location) {
                    match field? {
                        (1, Value::Bytes(url)) => found.server = text(url)?,
                        (2, Value::Bytes(url)) => found.public_server = text(url)?,
                        _ => {}
                    }
                }
            }
            (11, Value::Number(flag)) => found.is_synced = flag != 0,
            _ => {}
        }
    }
    if !error.is_empty() {
        return Err(error);
    }
    let is_whole = !found.file_id.is_empty() && !found.server.is_empty();
    if is_whole { Ok(found) } else { Err("it assigned no place".to_owned()) }
}

/// `LookupVolumeRequest`.
pub fn lookup_request<'a>(volumes: impl Iterator<Item = &'a str>) -> Vec<u8> {
    let mut message = Message::default();
    volumes.for_each(|volume| message.bytes(1, volume.as_bytes()));
    message.0
}

/// `LookupVolumeResponse`: volumes, each with the `host:port` of its servers. One that no server
/// has is left out.
///
/// # Errors
/// It is no message.
pub fn locations(bytes: &[u8]) -> Result<Vec<(String, Vec<String>)>, String> {
    let mut found = Vec::new();
    for field in Fields(bytes) {
        let (1, Value::Bytes(entry)) = field? else { continue };
        let (mut volume, mut servers) = (String::new(), Vec::new());
        for field in Fields(entry) {
            match field? {
                (1, Value::Bytes(id)) => volume = text(id)?,
                (2, Value::Bytes(list)) => servers = server_list(list)?,
                _ => {}
            }
        }
        if !servers.is_empty() {
            found.push((volume, servers));
        }
    }
    Ok(found)
}

/// `Locations`.
fn server_list(bytes: &[u8]) -> Result<Vec<String>, String> {
    let mut servers = Vec::new();
    for field in Fields(bytes) {
        let (1, Value::Bytes(location)) = field? else { continue };
        for field in Fields(location) {
            if let (1, Value::Bytes(url)) = field? {
                servers.push(text(url)?);
            }
        }
    }
    Ok(servers)
}

/// `CreateEntryRequest`: a file of these chunks; one that is there is replaced, and of its chunks
/// those are deleted that the new one has not.
pub fn create_request(file: &File<'_>) -> Vec<u8> {
    let mut attributes = Message::default();
    attributes.number(1, file.size);
    attributes.number(2, file.modified);
    attributes.number(3, 0o644);
    attributes.number(6, file.modified);
    attributes.bytes(7, file.mime.as_bytes());
    let mut entry = Message::default();
    entry.bytes(1, file.name.as_bytes());
    for chunk in file.chunks {
        let mut message = Message::default();
        message.bytes(1, chunk.file_id.as_bytes());
        message.number(2, chunk.offset);
        message.number(3, chunk.size);
        message.number(4, chunk.modified_ns);
        entry.bytes(3, &message.0);
    }
    entry.bytes(4, &attributes.0);
    let mut request = Message::default();
    request.bytes(1, file.directory.as_bytes());
    request.bytes(2, &entry.0);
    request.0
}

/// `CreateEntryResponse`.
///
/// # Errors
/// What the filer says is wrong.
pub fn created(bytes: &[u8]) -> Result<(), String> {
    for field in Fields(bytes) {
        if let (1, Value::Bytes(error)) = field?
            && !error.is_empty()
        {
            return Err(text(error)?);
        }
    }
    Ok(())
}

/// `GetFilerConfigurationResponse`: whether what is stored has to be encrypted by whoever stores
/// it.
///
/// # Errors
/// It is no message.
pub fn is_encrypted(bytes: &[u8]) -> Result<bool, String> {
    let mut is_encrypted = false;
    for field in Fields(bytes) {
        if let (7, Value::Number(flag)) = field? {
            is_encrypted = flag != 0;
        }
    }
    Ok(is_encrypted)
}

#[derive(Default)]
struct Message(Vec<u8>);

impl Message {
    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }

    /// Zero is what a field has that is not there.
    fn number(&mut self, field: u64, value: u64) {
        if value != 0 {
            self.varint(field << 3);
            self.varint(value);
        }
    }

    fn bytes(&mut self, field: u64, value: &[u8]) {
        if !value.is_empty() {
            self.varint(field << 3 | 2);
            self.varint(value.len() as u64);
            self.0.extend_from_slice(value);
        }
    }
}

enum Value<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

/// The fields of a message, by number, in order. After a fault there are no more.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    fn varint(&mut self) -> Option<u64> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.take(1)?[0];
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Some(value);
            }
        }
        None
    }

    fn field(&mut self) -> Option<(u64, Value<'a>)> {
        let key = self.varint()?;
        let value = match key & 7 {
            0 => Value::Number(self.varint()?),
            1 => Value::Bytes(self.take(8)?),
            2 => {
                let len = self.varint()?;
                Value::Bytes(self.take(usize::try_from(len).ok()?)?)
            }
            5 => Value::Bytes(self.take(4)?),
            _ => return None,
        };
        Some((key >> 3, value))
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Result<(u64, Value<'a>), String>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let field = self.field();
        if field.is_none() {
            self.0 = &[];
        }
        Some(field.ok_or_else(|| "its answer is no message of filer.proto".to_owned()))
    }
}

fn text(bytes: &[u8]) -> Result<String, String> {
    String::from_utf8(bytes.to_vec()).map_err(|_| "its answer has a text that is none".to_owned())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn requests() {
        assert_eq!(assign_request("/a", 300), b"\x08\x01\x32\x02/a\x50\xac\x02");
        let chunk = Chunk { file_id: "3,0".to_owned(), offset: 0, size: 5, modified_ns: 1 };
        let file =
            File { directory: "/d", name: "n", size: 5, modified: 7, mime: "", chunks: &[chunk] };
        let entry = b"\x0a\x01n\x1a\x09\x0a\x033,0\x18\x05\x20\x01\x22\x09\x08\x05\x10\x07\x18\xa4\x03\x30\x07";
        let expected = [b"\x0a\x02/d\x12".as_slice(), &[entry.len() as u8], entry].concat();
        assert_eq!(create_request(&file), expected);
    }

    #[test]
    fn answers() {
        let mut location = Message::default();
        location.bytes(1, b"h:1");
        location.bytes(2, b"p:1");
        location.number(3, 9);
        let mut message = Message::default();
        message.bytes(1, b"3,01");
        message.bytes(5, b"jwt");
        message.bytes(9, &location.0);
        message.number(11, 1);
        let found = assignment(&message.0).unwrap();
        assert_eq!((found.file_id.as_str(), found.server.as_str()), ("3,01", "h:1"));
        assert_eq!((found.token.as_str(), found.public_server.as_str()), ("jwt", "p:1"));
        assert!(found.is_synced);
        assert_eq!(assignment(b"\x42\x02no"), Err("no".to_owned()));
        assert_eq!(assignment(b""), Err("it assigned no place".to_owned()));
        assert!(assignment(b"\x0a\x7fx").unwrap_err().contains("no message"));
        assert!(assignment(b"\x0a\x01\xff").unwrap_err().contains("a text"));
        let mut list = Message::default();
        list.bytes(1, &location.0);
        let mut entry = Message::default();
        entry.bytes(1, b"3");
        entry.bytes(2, &list.0);
        let mut volumes = Message::default();
        volumes.bytes(1, &entry.0);
        volumes.bytes(1, b"\x0a\x014");
        let servers = vec!["h:1".to_owned()];
        assert_eq!(locations(&volumes.0), Ok(vec![("3".to_owned(), servers)]));
        assert_eq!(lookup_request(["3", "4"].into_iter()), b"\x0a\x013\x0a\x014");
        assert_eq!((created(b""), created(b"\x0a\x02no")), (Ok(()), Err("no".to_owned())));
        assert_eq!((is_encrypted(b"\x38\x01"), is_encrypted(b"")), (Ok(true), Ok(false)));
    }

    proptest! {
        #[test]
        fn no_answer_is_too_strange(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = (assignment(&bytes), created(&bytes), is_encrypted(&bytes), locations(&bytes));
        }
    }
}
