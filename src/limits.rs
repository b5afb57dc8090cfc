//! Every bound of the program, with its reason. Hitting one is a named error and, in the gateway, a
//! counter.

use std::time::Duration;

// --- Binary protocol (src/wire/protocol.md) ---

/// Largest payload that a server takes from a client.
pub const SERVER_PAYLOAD_BYTES_MAX: u32 = 1 << 20;
/// Largest payload that a client takes, until its HELLO says otherwise.
pub const CLIENT_PAYLOAD_BYTES_MAX: u32 = 64 << 10;
/// Least that a client's HELLO may ask for: an ERROR with a sentence in it fits.
pub const CLIENT_PAYLOAD_BYTES_MIN: u32 = 256;
/// Requests that may be open on one connection.
pub const OPEN_REQUESTS_MAX: u32 = 64;
/// A PING's payload.
pub const PING_BYTES_MAX: u32 = 64;
/// PONGs that wait for a peer who does not read them; one more and the peer is closed.
pub const PONGS_UNSENT_MAX: u32 = 64;
/// Credit that may be outstanding for one request.
pub const CREDIT_MAX: u32 = i32::MAX as u32;
/// Stop words of one request: llama-server has no bound, but each costs a search per token.
pub const STOP_WORDS_MAX: usize = 64;

// --- HTTP ---

/// A request's or response's head (nginx: 8 KiB a line, 32 KiB in all; Apache: 8 KiB a field).
pub const HTTP_HEAD_BYTES_MAX: usize = 32 << 10;
/// Header fields of one head.
pub const HTTP_HEADERS_MAX: usize = 64;
/// A request's body: a chat of a million tokens, or a picture in base64, fits.
pub const HTTP_BODY_BYTES_MAX: usize = 16 << 20;
/// A chunk-size line, extensions included.
pub const HTTP_CHUNK_LINE_BYTES_MAX: usize = 4 << 10;
/// One SSE event of a backend: the last one of llama-server carries the prompt and the settings.
pub const SSE_EVENT_BYTES_MAX: usize = 32 << 20;
/// An answer that is collected for a client who did not ask for a stream.
pub const COLLECTED_BYTES_MAX: usize = 64 << 20;

// --- Buffers ---

/// Text of one request that waits for its reader; past it the backend is not read.
pub const STREAM_BUFFER_BYTES_MAX: usize = 64 << 10;
/// Below this a paused backend is read again.
pub const STREAM_BUFFER_BYTES_LOW: usize = 16 << 10;
/// Bytes that wait for one socket; past it text stays in its stream's buffer.
pub const SOCKET_BUFFER_BYTES_HIGH: usize = 256 << 10;
/// Bytes read from one connection before others get their turn.
pub const READ_BUDGET_BYTES: usize = 256 << 10;

// --- Batches ---

/// Read from an input at once: the cost of a system call is lost in it.
pub const BATCH_BLOCK_BYTES: usize = 256 << 10;
/// A result's line: an answer as long as one may be, every byte of it escaped (`\u001f`), and the
/// members around it.
pub const RESULT_LINE_BYTES_MAX: usize = 6 * COLLECTED_BYTES_MAX + (1 << 20);
/// Written to a part at once.
pub const JOURNAL_GROUP_BYTES: usize = 1 << 20;
/// Parts that one merge reads: 17 bits number them, the old output and the error file.
pub const PARTS_MAX: usize = (1 << 17) - 2;
/// Length of one file of results: 44 bits tell places in it.
pub const PART_BYTES_MAX: u64 = 1 << 44;

// --- Models ---

/// Bytes of a part unless told otherwise: damage costs a second or so of a slow network, and 100 GB
/// have 1526 parts, a record of 100 KB.
pub const PART_BYTES: u64 = 64 << 20;
/// A smaller part would cost more in requests than in bytes.
pub const PART_BYTES_LEAST: u64 = 64 << 10;
/// A larger part would not fit into the memory of a modest machine, several times.
pub const PART_BYTES_MOST: u64 = 1 << 30;
/// A manifest or a record: 100 GB in the smallest parts would have twice as much.
pub const STORE_JSON_BYTES_MAX: usize = 64 << 20;
/// Left free on the cache's disk: other programs have files too.
pub const CACHE_FREE_BYTES: u64 = 256 << 20;
/// A cached blob whose path was told stays at least so long: its reader has to be started.
pub const CACHE_GRACE: Duration = Duration::from_secs(60);
/// Files of one model: a thousand shards and what belongs to them.
pub const MODEL_FILES_MAX: usize = 1024;
/// A GGUF's header: tokenizers of 250,000 words take some 10 MB.
pub const GGUF_HEADER_BYTES_MAX: u64 = 256 << 20;
/// Tensors or pairs of a GGUF: the largest models have some thousands.
pub const GGUF_COUNT_MAX: u64 = 1_000_000;
/// A model's name or tag: a file system's 255 less what is put around it.
pub const STORE_NAME_BYTES_MAX: usize = 200;
/// Connections to one filer or volume server that are kept for the next request: one for each
/// worker and some for what goes beside.
pub const FILER_CONNECTIONS_MAX: usize = 16;
/// Bytes of a chunk, SeaweedFS's unit of storage, where the store makes them itself: about what its
/// own clients take. A volume server reads a chunk into a buffer that it makes 4 MiB large at
/// first; one that fills it to the last byte has it doubled and copied, at a third more CPU time.
pub const FILER_CHUNK_BYTES: usize = (4 << 20) - (4 << 10);
/// Entries of one page of a filer's listing: each comes with all its chunks.
pub const FILER_PAGE_ENTRIES: usize = 200;
/// A page: for each of its entries there is room for the chunks of 400 GB.
pub const FILER_LISTING_BYTES_MAX: usize = 1 << 30;

const _: () = assert!(PART_BYTES_LEAST <= PART_BYTES && PART_BYTES <= PART_BYTES_MOST);
const _: () = assert!(STREAM_BUFFER_BYTES_LOW < STREAM_BUFFER_BYTES_MAX);
const _: () = assert!(CLIENT_PAYLOAD_BYTES_MIN <= CLIENT_PAYLOAD_BYTES_MAX);
const _: () = assert!(PING_BYTES_MAX < CLIENT_PAYLOAD_BYTES_MIN);

// --- Times ---

/// A client that has begun a request, a frame or its first four bytes has this long to end it.
pub const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
/// After an error that closes, the peer has this long to read it: a close with unread input would
/// reset it away.
pub const LINGER_TIMEOUT: Duration = Duration::from_secs(2);
/// A crash of the machine costs at most the results of this long.
pub const JOURNAL_SYNC_INTERVAL: Duration = Duration::from_millis(200);
/// llama-server closes an idle connection after 5.0 s.
pub const UPSTREAM_IDLE_MAX: Duration = Duration::from_secs(4);
/// A filer that answered before is asked again for so long: it has time to restart.
pub const FILER_PATIENCE: Duration = Duration::from_secs(60);
/// And one that never did: it is more likely the wrong address.
pub const FILER_FIRST_PATIENCE: Duration = Duration::from_secs(2);
/// A connection to a filer on which no byte moves for so long is given up.
pub const FILER_STALL_MAX: Duration = Duration::from_secs(30);
/// What a filer that has just come back does not list yet is looked for so long.
pub const FILER_SETTLE: Duration = Duration::from_secs(20);
/// Bytes that a filer does not give for so long, although it is well, count as damaged.
pub const FILER_UNREADABLE: Duration = Duration::from_secs(5);
