//! Policy, flow and peek in; a permit or a refusal out. Pure, and the only maker of permits.
