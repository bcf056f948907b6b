-- Tables, strings, coroutines, the collector, protected calls.
local words, count = {}, 0
for i = 1, 200000 do
  local w = ("w%d"):format(i * 7919 % 5003)
  if not words[w] then words[w] = 0; count = count + 1 end
  words[w] = words[w] + 1
end
print("words", count, words.w17)
local function numbers(n) return coroutine.wrap(function() for i = 1, n do coroutine.yield(i) end end) end
local sum = 0
for i in numbers(100000) do sum = sum + i end
print("sum", sum)
local list = {}
for i = 1, 50000 do list[i] = (i * 7919) % 100003 end
table.sort(list)
print("sorted", list[1], list[25000], list[50000])
local parts = {}
for i = 1, 20000 do parts[#parts + 1] = tostring(i):rep(3) end
local text = table.concat(parts, ",")
print("text", #text, select(2, text:gsub("7", "")))
print(pcall(error, { code = 5 }) == false, select(2, pcall(function() local x = nil; return x.y end)))
for i = 1, 20 do local junk = {} for j = 1, 10000 do junk[j] = { j } end end
collectgarbage()
print("memory", collectgarbage("count") < 60000)
local name = os.tmpname()
local file = assert(io.open(name, "w"))
for i = 1, 1000 do file:write(i, "\n") end
file:close()
local total = 0
for line in io.lines(name) do total = total + tonumber(line) end
os.remove(name)
print("file", total, (io.open(name)))
print(string.format("%.10f %g %q", math.sin(1), 2^53, "a\nb"))
io.stderr:write("to standard error\n")
os.exit(3)
