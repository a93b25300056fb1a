-- Records that the broker has messages.
--
-- ARGV[1]  what stands before the id in the key of a message
-- then the ids of the messages
for i = 2, #ARGV do
  redis.call('HSET', ARGV[1] .. ARGV[i], 'published', '1')
end
