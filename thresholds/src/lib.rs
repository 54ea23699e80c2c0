//! The language of measurement and of judgement.
