//! Routes. One definition of each makes the router and its part of the `OpenAPI` document.

use axum::handler::Handler;
use axum::http::Method;
use axum::routing::{self, MethodRouter};
use schemars::{JsonSchema, Schema, SchemaGenerator};

use super::Api;
use super::parameters::Parameter;
use super::reader::Reading;

/// Makes the schema of a type.
pub(super) type SchemaOf = fn(&mut SchemaGenerator) -> Schema;

/// One route.
#[derive(Debug)]
pub(super) struct Route {
    pub(super) method: Method,
    /// With the parts of the path that name an object as `{name}`.
    pub(super) path: &'static str,
    /// The name of the operation in generated clients.
    pub(super) operation: &'static str,
    /// What it answers or does, in one sentence.
    pub(super) summary: &'static str,
    pub(super) access: Access,
    pub(super) parameters: &'static [Parameter],
    /// The body that it takes.
    pub(super) body: Option<SchemaOf>,
    /// The answers to a request that is not refused.
    pub(super) answers: Vec<Answer>,
    /// The statuses of refusals beside those that every route of its [`Access`] has.
    pub(super) refusals: &'static [u16],
    pub(super) handler: MethodRouter<Api>,
}

/// What a route needs of its caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Access {
    /// Nothing.
    Open,
    /// A valid token.
    Authenticated,
    /// The right to read violations.
    Read(Reading),
    /// The right to get the path itself.
    Path,
    /// The right to do this to this resource.
    Operate(&'static str, &'static str),
}

/// One answer of a route.
#[derive(Clone, Copy, Debug)]
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) about: &'static str,
    /// The media type and the schema of its body, if it has one.
    pub(super) body: Option<(&'static str, SchemaOf)>,
}

impl Route {
    fn new(method: Method, path: &'static str, handler: MethodRouter<Api>, operation: &'static str) -> Self {
        Self {
            method,
            path,
            operation,
            summary: "",
            access: Access::Open,
            parameters: &[],
            body: None,
            answers: Vec::new(),
            refusals: &[],
            handler,
        }
    }

    /// A route that reads.
    pub(super) fn get<H, T>(path: &'static str, operation: &'static str, handler: H) -> Self
    where
        H: Handler<T, Api>,
        T: 'static,
    {
        Self::new(Method::GET, path, routing::get(handler), operation)
    }

    /// A route that adds, or carries out a command.
    pub(super) fn post<H, T>(path: &'static str, operation: &'static str, handler: H) -> Self
    where
        H: Handler<T, Api>,
        T: 'static,
    {
        Self::new(Method::POST, path, routing::post(handler), operation)
    }

    /// A route that replaces.
    pub(super) fn put<H, T>(path: &'static str, operation: &'static str, handler: H) -> Self
    where
        H: Handler<T, Api>,
        T: 'static,
    {
        Self::new(Method::PUT, path, routing::put(handler), operation)
    }

    /// A route that removes.
    pub(super) fn delete<H, T>(path: &'static str, operation: &'static str, handler: H) -> Self
    where
        H: Handler<T, Api>,
        T: 'static,
    {
        Self::new(Method::DELETE, path, routing::delete(handler), operation)
    }

    pub(super) fn summary(self, summary: &'static str) -> Self {
        Self { summary, ..self }
    }

    pub(super) fn access(self, access: Access) -> Self {
        Self { access, ..self }
    }

    pub(super) fn parameters(self, parameters: &'static [Parameter]) -> Self {
        Self { parameters, ..self }
    }

    pub(super) fn takes<T: JsonSchema>(self) -> Self {
        Self { body: Some(SchemaGenerator::subschema_for::<T>), ..self }
    }

    pub(super) fn refusals(self, refusals: &'static [u16]) -> Self {
        Self { refusals, ..self }
    }

    /// An answer with a JSON body.
    pub(super) fn answers<T: JsonSchema>(self, status: u16, about: &'static str) -> Self {
        self.with("application/json", SchemaGenerator::subschema_for::<T>, status, about)
    }

    /// An answer with a body of another media type.
    pub(super) fn answers_text(self, media: &'static str, status: u16, about: &'static str) -> Self {
        self.with(media, SchemaGenerator::subschema_for::<String>, status, about)
    }

    /// An answer without a body.
    pub(super) fn answers_nothing(mut self, status: u16, about: &'static str) -> Self {
        self.answers.push(Answer { status, about, body: None });
        self
    }

    fn with(mut self, media: &'static str, schema: SchemaOf, status: u16, about: &'static str) -> Self {
        self.answers.push(Answer { status, about, body: Some((media, schema)) });
        self
    }
}
