//! System tests.

mod audit_verify;
