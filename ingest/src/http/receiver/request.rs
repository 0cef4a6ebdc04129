//! The body of a submission: the form, and the files that came with it (forms-and-cases.md §3).

use axum::{
    extract::{FromRequest, Multipart, Request, multipart::Field},
    http::{StatusCode, header},
};
use bytes::{Bytes, BytesMut};
use futures::StreamExt;

use super::{Refusal, refuse, too_large};
use crate::{
    config::IngestConfig,
    http::{
        envelope,
        room::{BodyRoom, Held},
    },
};

/// Name of the form's part.
const FORM_PART: &str = "xml_submission_file";

/// Endings of attachments that are taken whatever their media type.
const ENDINGS: [&str; 24] = [
    "jpg", "jpeg", "png", "pdf", "3ga", "mp3", "wav", "amr", "qcp", "ogg", "3gpp", "3gp", "3gp2", "3g2", "mp4", "mpg4",
    "mpeg4", "m4v", "mpg", "mpeg", "JPG", "JPEG", "PNG", "PDF",
];

/// Most files with one form.
const MAX_FILES: usize = 200;

/// What a request brought.
#[derive(Debug)]
pub(super) struct Parts {
    /// Bytes of the form.
    pub form: Bytes,
    /// Attachments.
    pub files: Vec<File>,
    /// The memory that they are in.
    pub held: Held,
}

/// An attachment.
#[derive(Debug)]
pub(super) struct File {
    /// Name of its part.
    pub name: String,
    /// Media type of its part.
    pub content_type: Option<String>,
    /// Bytes.
    pub bytes: Bytes,
}

/// Reads a body, checked in the order of §3.
///
/// # Errors
/// The response to send.
pub(super) async fn read(request: Request, config: &IngestConfig, room: &BodyRoom) -> Result<Parts, Refusal> {
    let held = room.request(request.headers());
    let content_type = request.headers().get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let parts = if content_type.is_some_and(|kind| kind.starts_with("multipart/form-data")) {
        multipart(request, config, held).await?
    } else {
        raw(request, config, held).await?
    };
    if parts.form.is_empty() {
        return Err(refuse(StatusCode::BAD_REQUEST, "The submission is empty"));
    }
    Ok(parts)
}

async fn raw(request: Request, config: &IngestConfig, mut held: Held) -> Result<Parts, Refusal> {
    let mut body = request.into_body().into_data_stream();
    let mut form = BytesMut::new();
    while let Some(chunk) = body.next().await {
        let chunk = chunk.map_err(|error| unreadable(&error, config))?;
        if form.len() + chunk.len() > config.max_form_bytes {
            return Err(too_large(config));
        }
        held.count(chunk.len()).await?;
        form.extend_from_slice(&chunk);
    }
    Ok(Parts { form: form.freeze(), files: Vec::new(), held })
}

/// A body that ended early, cannot be inflated, or crossed the limit.
fn unreadable(error: &axum::Error, config: &IngestConfig) -> Refusal {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = cause {
        if error.to_string().contains("length limit exceeded") {
            return too_large(config);
        }
        cause = error.source();
    }
    refuse(StatusCode::BAD_REQUEST, format!("The submission could not be read: {error}"))
}

async fn multipart(request: Request, config: &IngestConfig, mut held: Held) -> Result<Parts, Refusal> {
    let broken = |error: &dyn std::fmt::Display| {
        refuse(StatusCode::BAD_REQUEST, format!("The submission's parts could not be read: {error}"))
    };
    let mut multipart = Multipart::from_request(request, &()).await.map_err(|error| broken(&error))?;
    let mut form = None;
    let mut files = Vec::new();
    loop {
        let field = multipart.next_field().await.map_err(|error| refuse(error.status(), error.body_text()))?;
        let Some(field) = field else { break };
        let name = field.name().unwrap_or_default().to_owned();
        let Some(file_name) = field.file_name().map(str::to_owned) else {
            return Err(refuse(StatusCode::BAD_REQUEST, "Received a submission with POST.keys()"));
        };
        if name == FORM_PART {
            let bytes = content(field, config.max_form_bytes, &mut held).await?.ok_or_else(|| too_large(config))?;
            if !file_name.ends_with(".xml") {
                let text = format!("The form's file name must end in .xml, got {file_name:?}");
                return Err(Box::new(envelope::unacceptable(&text)));
            }
            form = Some(bytes);
        } else {
            let content_type = field.content_type().map(str::to_owned);
            let limit = config.max_attachment_bytes;
            let bytes = content(field, limit, &mut held).await?.ok_or_else(|| {
                refuse(
                    StatusCode::PAYLOAD_TOO_LARGE,
                    format!("Attachment exceeds {}MB size limit", limit / (1024 * 1024)),
                )
            })?;
            if !allowed(&file_name, content_type.as_deref()) || files.len() >= MAX_FILES {
                let text = format!("Attachment {name:?} is of a type that is not accepted, or one too many");
                return Err(Box::new(envelope::unacceptable(&text)));
            }
            files.push(File { name, content_type, bytes });
        }
    }
    let missing = || refuse(StatusCode::BAD_REQUEST, format!("The submission has no file part named {FORM_PART}"));
    Ok(Parts { form: form.ok_or_else(missing)?, files, held })
}

/// The bytes of a part, `None` if there are more than `limit`.
async fn content(mut field: Field<'_>, limit: usize, held: &mut Held) -> Result<Option<Bytes>, Refusal> {
    let mut bytes = BytesMut::new();
    while let Some(chunk) = field.chunk().await.map_err(|error| refuse(error.status(), error.body_text()))? {
        if bytes.len() + chunk.len() > limit {
            return Ok(None);
        }
        held.count(chunk.len()).await?;
        bytes.extend_from_slice(&chunk);
    }
    Ok(Some(bytes.freeze()))
}

fn allowed(file_name: &str, content_type: Option<&str>) -> bool {
    let ending = file_name.rsplit_once('.').map(|(_, ending)| ending);
    let media = content_type.unwrap_or_default();
    ending.is_some_and(|ending| ENDINGS.contains(&ending))
        || ["audio/", "image/", "video/"].iter().any(|kind| media.starts_with(kind))
        || media == "application/octet-stream"
        || media == "application/pdf"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attachments_pass_by_ending_or_type() {
        for (name, kind, expected) in [
            ("a.jpg", None, true),
            ("a.mp4", Some("text/plain"), true),
            ("a.exe", Some("image/png"), true),
            ("a", Some("application/pdf"), true),
            ("a.exe", Some("application/x-executable"), false),
            ("jpg", None, false),
        ] {
            assert_eq!(allowed(name, kind), expected, "{name} {kind:?}");
        }
    }
}
