-- Whose models answer a tenant's questions: those of its own keys, those that the owner lends, or those behind its own.
ALTER TABLE chat_instances ADD COLUMN ai_mode text NOT NULL DEFAULT 'own'
    CHECK (ai_mode IN ('own', 'shared', 'own_then_shared'));
