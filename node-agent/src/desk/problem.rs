//! Errors as RFC 9457 problem documents, with the stable reason code.

use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use docaxis_protocol::{Reason, ReasonCode};
use serde_json::json;

use crate::compose::Refused;

pub(super) struct Problem(pub Reason);

impl From<Refused> for Problem {
    fn from(refused: Refused) -> Self {
        if let Refused::Rule(reason) = &refused {
            return Self(reason.clone());
        }
        let mut text = refused.to_string();
        let mut source = std::error::Error::source(&refused);
        while let Some(inner) = source {
            text = format!("{text}: {inner}");
            source = inner.source();
        }
        if !matches!(refused, Refused::Read { .. }) {
            tracing::error!(error = text, "a request could not be done");
        }
        Self(refused.code().because(text))
    }
}

impl Problem {
    pub fn malformed(text: impl Into<String>) -> Self {
        Self(ReasonCode::Malformed.because(text))
    }
}

fn status(code: ReasonCode) -> StatusCode {
    match code {
        ReasonCode::NotFound => StatusCode::NOT_FOUND,
        ReasonCode::Malformed => StatusCode::BAD_REQUEST,
        ReasonCode::IdConflict | ReasonCode::NotYours => StatusCode::CONFLICT,
        ReasonCode::Busy | ReasonCode::ClockSkew => StatusCode::SERVICE_UNAVAILABLE,
        ReasonCode::DiskFull => StatusCode::INSUFFICIENT_STORAGE,
        ReasonCode::Withdrawn => StatusCode::GONE,
        ReasonCode::Other => StatusCode::INTERNAL_SERVER_ERROR,
        _ => StatusCode::UNPROCESSABLE_ENTITY,
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let code = self.0.known();
        let status = status(code);
        let text = code.text();
        let body = json!({
            "type": format!("urn:docaxis:reason:{}", self.0.code),
            "title": text.en,
            "status": status.as_u16(),
            "code": self.0.code,
            "detail": self.0.text,
            "hint": text.hint,
        });
        (status, [(header::CONTENT_TYPE, "application/problem+json")], body.to_string()).into_response()
    }
}
