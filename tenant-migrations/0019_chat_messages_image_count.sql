-- How many images a question came with, so that conversations without any are read without a look at the images.
ALTER TABLE chat_messages ADD COLUMN image_count smallint NOT NULL DEFAULT 0;
