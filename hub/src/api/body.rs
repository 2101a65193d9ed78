//! Reading requests: JSON bodies, queries and paths, each refused with a problem document that names the field.

use std::time::Duration;

use axum::{
    Json,
    body::Bytes,
    extract::{FromRequest, FromRequestParts, Request},
    http::{StatusCode, Uri, header, request::Parts},
};
use bytes::BytesMut;
use futures_util::StreamExt as _;
use serde::de::DeserializeOwned;

use super::{BODY_BYTES, paging::PageQuery, problem::Problem};

/// Bodies are small; one that takes longer holds a connection for nothing.
const SLOWEST_BODY: Duration = Duration::from_secs(30);

/// A JSON body. No body at all reads as `{}`.
#[derive(Debug)]
pub struct Body<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Body<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, _state: &S) -> Result<Self, Problem> {
        let json = is_json(request.headers());
        let read = tokio::time::timeout(SLOWEST_BODY, read_whole(request)).await.map_err(|_| {
            Problem::new(
                StatusCode::REQUEST_TIMEOUT,
                "body_too_slow",
                "the body did not arrive in time",
                "send it at once, or in smaller pieces",
            )
        })?;
        let bytes = read.map_err(|fault| match fault {
            ReadFault::TooLarge => Problem::new(
                StatusCode::PAYLOAD_TOO_LARGE,
                "body_too_large",
                "the body is larger than this endpoint takes",
                "send less at once; scripts may have 256 KiB, standard input goes in pieces",
            ),
            ReadFault::Broken(error) => Problem::malformed(error.to_string()),
        })?;
        if bytes.is_empty() {
            return read_json(b"{}").map(Self);
        }
        if !json {
            return Err(Problem::new(
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "json_expected",
                "the body must be JSON",
                "send the header `Content-Type: application/json`",
            ));
        }
        read_json(&bytes).map(Self)
    }
}

/// Why a body was not read.
enum ReadFault {
    TooLarge,
    Broken(axum::Error),
}

/// The body, if it is no larger than [`BODY_BYTES`].
async fn read_whole(request: Request) -> Result<Bytes, ReadFault> {
    let mut pieces = request.into_body().into_data_stream();
    let mut body = BytesMut::new();
    while let Some(piece) = pieces.next().await {
        let piece = piece.map_err(ReadFault::Broken)?;
        if body.len() + piece.len() > BODY_BYTES {
            return Err(ReadFault::TooLarge);
        }
        body.extend_from_slice(&piece);
    }
    Ok(body.freeze())
}

/// Whether the headers announce JSON.
pub fn is_json(headers: &axum::http::HeaderMap) -> bool {
    let content_type = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    content_type.split(';').next().is_some_and(|media| media.trim().eq_ignore_ascii_case("application/json"))
}

fn read_json<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Problem> {
    serde_json::from_slice(bytes).map_err(|error| Problem::malformed(explain(&error.to_string())))
}

/// Adds the nearest known name to serde's message about an unknown field.
fn explain(message: &str) -> String {
    let mut names = message.split('`').skip(1).step_by(2);
    let (true, Some(unknown)) = (message.starts_with("unknown field"), names.next()) else { return message.to_owned() };
    let nearest = names.map(|name| (strsim::damerau_levenshtein(unknown, name), name)).min();
    match nearest {
        Some((distance, name)) if distance <= 1 + name.len() / 3 => format!("{message}; did you mean `{name}`?"),
        _ => message.to_owned(),
    }
}

/// A query string.
#[derive(Debug)]
pub struct Query<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Query<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, Problem> {
        read_query(&parts.uri).map(Self)
    }
}

/// A query string that asks for a page of something.
#[derive(Debug)]
pub struct PagedQuery<T>(pub T, pub PageQuery);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for PagedQuery<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, Problem> {
        let pairs = parts.uri.query().unwrap_or_default().split('&');
        let (page, own): (Vec<&str>, Vec<&str>) = pairs.partition(|pair| pair.starts_with("limit=") || pair.starts_with("cursor="));
        let uri = |pairs: Vec<&str>| format!("/?{}", pairs.join("&")).parse::<Uri>().map_err(|error| Problem::malformed(error.to_string()));
        Ok(Self(read_query(&uri(own)?)?, read_query(&uri(page)?)?))
    }
}

fn read_query<T: DeserializeOwned>(uri: &Uri) -> Result<T, Problem> {
    axum::extract::Query::try_from_uri(uri).map(|axum::extract::Query(query)| query).map_err(|rejection| {
        let text = rejection.body_text();
        let reason = text.split_once(": ").map_or(text.as_str(), |(_, reason)| reason);
        Problem::malformed(format!("the query cannot be read: {}", explain(reason)))
    })
}

/// Path parameters. What is not an id names nothing: 404.
#[derive(Debug)]
pub struct Path<T>(pub T);

impl<T: DeserializeOwned + Send, S: Send + Sync> FromRequestParts<S> for Path<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let path = axum::extract::Path::from_request_parts(parts, state).await;
        path.map(|axum::extract::Path(path)| Self(path)).map_err(|_| Problem::not_found("thing"))
    }
}

/// What handlers answer.
pub type Answer<T> = Result<Json<T>, Problem>;

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Sample {
        #[expect(dead_code, reason = "only its name matters")]
        title: Option<String>,
    }

    #[test]
    fn an_unknown_field_is_refused_with_the_nearest_known_one() {
        let problem = read_json::<Sample>(br#"{"titel": "x"}"#).unwrap_err();
        let json = serde_json::to_value(&problem).unwrap();
        assert!(json["detail"].as_str().unwrap().contains("did you mean `title`?"), "{json}");
        let far = read_json::<Sample>(br#"{"something_else": 1}"#).unwrap_err();
        assert!(!serde_json::to_string(&far).unwrap().contains("did you mean"));
    }
}
