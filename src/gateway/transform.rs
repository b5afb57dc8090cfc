//! `--post`: answers of `/v1/embeddings` are collected, and go out with other vectors.

use super::front::Front;
use super::request::{Client, Stage};
use crate::backend::{Failure, embeddings};
use crate::clock::Instant;
use crate::limits::COLLECTED_BYTES_MAX;
use crate::net::Token;
use crate::wire::frame::ErrorCode;

impl Front {
    /// Keeps a part of an answer whose vectors are to be others.
    pub(super) fn collect(&mut self, now: Instant, token: Token, bytes: &[u8]) {
        let Some(request) = self.requests.get_mut(token) else { return };
        if request.body.len() + bytes.len() <= COLLECTED_BYTES_MAX {
            return request.body.extend_from_slice(bytes);
        }
        let message = format!("the embeddings take more than {COLLECTED_BYTES_MAX} bytes");
        self.fail(now, token, &Failure::request(ErrorCode::TooLarge, message));
    }

    /// Gives an answer that was collected its other vectors; false: it failed, and that was told.
    pub(super) fn transform(&mut self, now: Instant, token: Token) -> bool {
        let Some(plan) = &self.config.post else { return true };
        let Some(request) = self.requests.get_mut(token).filter(|request| request.embeds) else {
            return true;
        };
        match embeddings::transform(&request.body, plan, &mut self.offload) {
            Ok(body) => {
                request.body = body;
                true
            }
            Err(error) => {
                // The backend has ended well, and has nothing to be stopped.
                request.stage = Stage::Unread;
                let message = format!("--post: {error}");
                self.fail(now, token, &Failure::request(ErrorCode::Backend, message));
                false
            }
        }
    }

    /// A binary client gets its body in chunks, which is all of it here.
    pub(super) fn send_collected(&mut self, now: Instant, token: Token) {
        let Some(request) = self.requests.get_mut(token).filter(|request| request.embeds) else {
            return;
        };
        if let Client::Binary { .. } = request.client {
            request.embeds = false;
            let body = std::mem::take(&mut request.body);
            self.body(now, token, &body, 0);
        }
    }
}
